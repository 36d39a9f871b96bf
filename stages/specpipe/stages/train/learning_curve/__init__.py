"""`train --learning-curve`: tau by the amount of data, and what more of it is expected to bring."""
