"""A lock that lets only one thread of a process use ITK's readers and writers at a time."""

import threading

# ITK 5.4 sometimes corrupts the heap if one thread calls ReadImageInformation while another calls Execute: the process
# then dies in malloc. Decompression therefore waits for the lock as well; checksums and resampling run outside it.
one_at_a_time = threading.RLock()
