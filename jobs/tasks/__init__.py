"""What a network is trained for and how that is measured: captions (retrieval), questions, choices.

May import `jobs.run`, `pipeline` and `snps3_model`; no Ray Train and no MLflow.
"""
