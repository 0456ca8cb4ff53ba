"""The Numenta Anomaly Benchmark: its corpus, its scoring rule, and our detector under it.

Lavin & Ahmad 2015, "Evaluating real-time anomaly detection algorithms: the Numenta anomaly
benchmark" (arXiv:1510.03336); Ahmad, Lavin, Purdy & Agha 2017, 10.1016/j.neucom.2017.04.070.
The data is theirs (https://github.com/numenta/NAB, MIT) and not a part of this project.
"""
