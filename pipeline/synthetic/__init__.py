"""The embedded corpus: moving coloured shapes, generated from a seed, with captions, questions and score ceilings.

splits.py ──Scene──► render.py ──frames──► encoded files
   │                                                      corpus.py writes it all
   └──► captions.py, questions.py ──► difficulty.py ──► corpus.json

May import `pipeline.decode`.
"""
