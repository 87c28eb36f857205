"""What many runs say together: tables, a page for the browser, figures for a paper; read from run folders alone."""
