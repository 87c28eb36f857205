"""What do many runs say together? Read from run folders alone, whatever state the runs are in.

- `collect`: from runs to what a report shows of them: groups over seeds, curves, differences
- `terminal`: a report on the terminal
- `folder`: a report as files: `runs.csv`, `report.md`, `report.html` and `figures/`
- `figures`: the figures for print, drawn by matplotlib
- `page`, with `page.html`, `page.css` and `page.js`: the page for the browser
- `names`: runs named by what sets them apart, as TensorBoard lists them
"""
