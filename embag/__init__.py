from embag.functional import embedding_bag
