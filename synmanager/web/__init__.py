"""The dashboard: what the journal tells, as pages that move. Needs the extra ``web``.

```
observer     one thread that folds the journal for all browsers, and counts the queues now and then
curves timelines sweeps    what it keeps beside the fold, each bounded
numbers      what of a stranger's numbers can be compared and written
pages        what is to be seen, as values: no HTML
parts        a page as named pieces of HTML, of which a browser gets those that have changed
actions      what is asked of the grid, each counted before and recorded after
gate         who gets in: tokens, sessions, hosts, forms, and the headers of every answer
app          which path is what
serve        the process: a server around all that
```
"""
