"""The embedded corpus: coloured shapes that act over time, drawn from a seed, with captions, questions and ceilings.

splits.py ──Scene──► render.py ──frames──► encoded files
   │                                                      corpus.py writes it all
   └──► captions.py, questions.py ──► difficulty.py ──► corpus.json

May import `pipeline.decode`.
"""
