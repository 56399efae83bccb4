"""Print RECORDED of tests/text/test_other_libraries.py, from the libraries themselves.

Needs model2vec and sentence-transformers, and tests/support on the path.
"""

import tempfile
from pathlib import Path

import model2vec
import sentence_transformers
from static_models import TEXTS, save_model2vec, save_sentence_transformers

with tempfile.TemporaryDirectory() as folder:
    one, two = Path(folder, "one"), Path(folder, "two")
    save_model2vec(one, {"normalize": True, "max_length": 3})
    save_sentence_transformers(two, normalizes=True)
    for library in (
        model2vec.StaticModel.from_pretrained(one),
        sentence_transformers.SentenceTransformer(str(two), device="cpu"),
    ):
        print(type(library).__name__, library.encode(TEXTS[:5])[:, :2].round(7).tolist())
