"""The embedded corpus: moving coloured shapes, generated from a seed, with captions, questions and score ceilings.

splits.py ──Scene──► render.py ──frames──► encoded files
   │                                                      corpus.py writes it all
   └──► captions.py, questions.py ──► difficulty.py ──► corpus.json

The wordy variant has clutter.py between splits.py and the rest, and wordy.py in place of captions.py and questions.py.

May import `pipeline.decode`.
"""
