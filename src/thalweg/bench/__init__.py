"""The paper's efficiency study on any machine, and a comparison of two models on the user's own texts.

Files, each with one reason:
    shapes.py    models by name, as data           weights.py         such a model with random weights
    point.py     one measurement, as data          subjects.py        what it runs; peers.py: other software
    studies.py   which points a study has          meter.py           time and peak memory of a device
    worker.py    the process of one point          matmul_limit.py    matrix products alone, the machine's limit
    runner.py    points to results, one by one     machine.py         what figures depend on
    estimate.py  how long the rest will take       results.py         the folder of results
    process.py   a watched process that measures   plot_series.py     results to the lines of a picture
    figures.py   lines to pictures                 report.py          results to Markdown
    compare.py   two models on the same texts      compare_worker.py  the process of one of them
    agreement.py how far their vectors agree
"""
