"""The paper's experiments: data, models, policies, training, tables, searches."""
