"""ITK reads and writes one file at a time in a process."""

import threading

# Two threads in ITK's readers at once (5.4, one in ReadImageInformation, one in Execute) now and then corrupt the heap:
# the process dies in malloc. Decompression waits, too; checksums, resampling and everything else go on beside it.
one_at_a_time = threading.RLock()
