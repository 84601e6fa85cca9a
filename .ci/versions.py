"""Print the versions that a site links, as JSON: `latest`, from main, and `stable`, from a release.

With `--url NAME`, print the address of one.
"""

import json
import os
import sys

from bookkit import web


def main(words: list[str]) -> int:
    latest = web.site_url(os.environ)
    if not latest:
        sys.exit("set FABOOK_URL: without an address there are no versions")
    places = {"latest": latest, "stable": f"{latest}stable/"}
    rows = [{"name": name, "url": url} for name, url in places.items()]
    print(places[words[1]] if words[:1] == ["--url"] else json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
