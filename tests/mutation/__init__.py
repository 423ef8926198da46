"""Mutation testing: how many small faults in `sparsekit/` do the tests notice?

    python -m tests.mutation --seconds 600              # a fair sample, ten minutes
    python -m tests.mutation --files sparsekit/masks.py # all faults of one file
    python -m tests.mutation --report                   # scores and survivors so far
    python -m tests.mutation --folder F --known R       # only faults not in the file R

`make mutation` is the first of these. Results are lines of JSON in build/mutation; a
run goes on where the last one stopped, and forgets what concerns changed files. Results
of another machine are added to the end of results.jsonl.
"""
