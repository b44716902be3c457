"""Where a run runs: connecting to Ray, ranks and worker groups, trials, nodes that come and go.

May import ray, torch and nothing of ours.
"""
