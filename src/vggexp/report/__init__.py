"""What do many runs say together? Read from run folders alone, whatever state the runs are in.

- `collect`: from runs to what a report shows of them: groups over seeds, curves, differences
- `statistics`: intervals and tests over seeds, by scipy
- `notes`: what makes runs less comparable than they look, and how two of them differ
- `tables`: a report on the terminal and as files: `runs.csv`, `report.md`, with the page and the figures
- `figures`: the figures for print, drawn by matplotlib
- `page`, with `page.html`, `page.css` and `page.js`: the page for the browser
- `names`: runs named by what sets them apart, as TensorBoard lists them
- `columns`: what TensorBoard's table of hyperparameters shows of them
"""
