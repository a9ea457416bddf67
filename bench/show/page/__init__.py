"""One HTML page that needs no other file and no network: charts and tables of results, verdicts and histories.

`content` holds what goes on the page. `runs`, `lines` and `gates` turn it into plain values for the browser, `facts`
into words and tables for the reader. `render` fills the templates.
"""
