"""Reading what strangers wrote: files, JSON, Parquet, tensors, chat templates.

Every function takes `where`, the name that a person knows the thing by, and `refuse`, the class of
the tree's error that is raised when the thing is not what it should be. Size and depth are bounded.
"""
