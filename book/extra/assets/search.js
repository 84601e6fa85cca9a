// Excerpts of search results: the article's own words, without buttons, code and raw formulas.
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  const skip = ".headerlink, script, style, button, .cell_input, .math, .verdict, .copybtn";
  page.querySelectorAll(skip).forEach((element) => element.remove());
  const article = page.querySelector("article.bd-article") ?? page.querySelector("[role=main]");
  const part = anchor && article?.querySelector(anchor);
  return (part || article)?.textContent.replace(/\s+/g, " ") ?? "";
};

// Who searches for a word of the field meets its introduction first.
Scorer.score = ([docname, , , , score]) =>
  score + (docname.startsWith("notebooks/primer/") ? 30 : docname === "glossary" ? 10 : 0);
