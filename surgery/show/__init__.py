"""Show a run: the HTML report, drawings of graphs, and tables of passes."""
