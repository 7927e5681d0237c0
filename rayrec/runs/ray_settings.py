"""Settings of a Ray that this project starts on one machine, for its environment; what the user has set there stays."""

# Ray has its workers step back for all else (niceness 15): beside other work they starve. An own Ray's are the job itself.
# Blocks that were read are freed once a second by default; a stream of 250 MB a second then goes through twice the memory.
ONE_MACHINE_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_free_objects_period_milliseconds": "50",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no one takes this machine away
}
