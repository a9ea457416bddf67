"""One page of HTML that needs no other file and no network: charts and tables of results, verdicts and histories.

`content` is what it is made of; `runs`, `lines` and `gates` put that into plain values for the browser, `facts` for the
reader; `render` fills the templates.
"""
