"""A page and a JSON API over an index of moments: open it, answer, play, serve on loopback.

May import `jobs.run`, `jobs.inference`, `jobs.tracking.voice`, `pipeline` and `snps3_model`.
"""
