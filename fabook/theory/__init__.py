"""The theory of five papers, a package each: pure functions, in double precision.

| module | paper |
|---|---|
| ``refinetti2021`` | Refinetti, d'Ascoli, Ohana & Goldt, *Align, then memorise* |
| ``song2021`` | Song, Xu & Lafferty, *Convergence and alignment of gradient descent ...* |
| ``robertson2023`` | Robertson & Koyejo, *Layer-wise feedback alignment is conserved ...* |
| ``robertson2024`` | Robertson & Koyejo, *Implicit regularization in feedback alignment ...* |
| ``chu2023`` | Chu & Bacho (2024), *Random feedback alignment algorithms ...: why do they align?* |

``comparison`` sets our runs beside a paper's table, cell by cell. Nothing is imported here:
``from fabook.theory import robertson2023``.
"""
