"""A page and a JSON API over an index of moments: open it, answer, play, serve on loopback or by replicas on Ray.

May import `jobs.run`, `jobs.inference`, `jobs.tracking.voice`, `cluster`, `pipeline` and `snps3_model`.
"""
