"""Structure files of every convention in use, read by what they say (docs/data.md).

``reading.py`` is the entrance: a reader for each kind of file (``xyz.py``, ``npz.py``,
``deepmd.py``, ``database.py``, ``calculations.py``) collects atoms and everything that could be a
label under the names of the file, ``labels.py`` chooses one set of labels for the whole file, and
``units.py`` brings them to eV and Å. What was found, taken and left is in the report.
"""
