"""For each alert: series that make it fire, and series that do not though they come close.

Values are in promtool's notation: "0+60x30" begins at 0 and grows by 60 in each of 30 minutes. All
are looked at after MINUTES minutes.
"""

MINUTES = 120
ALWAYS = f"x{MINUTES}"


def still(value) -> str:
    """The same value all the time."""
    return f"{value}+0{ALWAYS}"


def grows(each_minute) -> str:
    return f"0+{each_minute}{ALWAYS}"


def late(value, minutes: int, before=0) -> str:
    """A value only in the last minutes."""
    return f"{before}+0x{MINUTES - minutes} {value}+0x{minutes}"


def buckets(name: str, labels: str, fast: int, slow: int, between: str, top: str) -> dict:
    """A histogram of which so many values a minute lie below `between`, and below `top` all of them."""
    return {
        f'{name}_bucket{{{labels}le="{between}"}}': grows(fast),
        f'{name}_bucket{{{labels}le="{top}"}}': grows(fast + slow),
        f'{name}_bucket{{{labels}le="+Inf"}}': grows(fast + slow),
    }


def memory(held: int) -> dict:
    return {
        'forebay_proxy_request_held_bytes{instance="p1"}': still(held),
        'forebay_proxy_answer_held_bytes{instance="p1"}': still(0),
        'forebay_proxy_memory_max_bytes{instance="p1"}': still(1000),
    }


def requests(failures: int, code: str) -> dict:
    return {
        'forebay_proxy_requests_total{instance="p1",operation="fetch"}': grows(1000),
        f'forebay_proxy_failures_total{{instance="p1",code="ERROR_CODE_{code}"}}': grows(failures),
    }


def owned(partitions: int, recovering: int) -> dict:
    return {
        'forebay_controller_partitions{instance="c1"}': still(64),
        'forebay_controller_partitions{instance="c2"}': still(0),
        'forebay_broker_partitions{instance="b1"}': still(32),
        'forebay_broker_partitions{instance="b2"}': still(partitions),
        'forebay_broker_partitions_recovering{instance="b1"}': still(0),
        'forebay_broker_partitions_recovering{instance="b2"}': still(recovering),
    }


def objects(failed: int) -> dict:
    store = "forebay_object_store_requests_total"
    return {
        f'{store}{{instance="n1",op="put",outcome="ok"}}': grows(100),
        f'{store}{{instance="n1",op="get",outcome="not_found"}}': grows(100),
        f'{store}{{instance="n1",op="put",outcome="unavailable"}}': grows(failed),
    }


def one(name: str, values: str, labels: str = 'instance="x"') -> dict:
    return {f"{name}{{{labels}}}": values}


PRODUCE = 'operation="produce_stream_request",'
LAG = "forebay_broker_offload_lag_bytes"
META = "forebay_meta_requests_total"
GIB = 1 << 30

# Alert: what makes it fire, and what does not.
CASES = {
    "ForebayPartitionsWithoutQuorum": (
        one("forebay_broker_partitions_without_quorum", late(3, 5)),
        one("forebay_broker_partitions_without_quorum", still(0)),
    ),
    "ForebayPartitionsUnderReplicated": (
        one("forebay_broker_partitions_under_replicated", late(3, 15)),
        one("forebay_broker_partitions_under_replicated", late(3, 8)),
    ),
    "ForebaySegmentsLost": (
        one("forebay_broker_segments_lost", late(1, 5)),
        one("forebay_broker_segments_lost", still(0)),
    ),
    "ForebaySegmentsOnLastCopy": (
        one("forebay_broker_segments_on_last_copy", late(2, 20)),
        one("forebay_broker_segments_on_last_copy", late(2, 10)),
    ),
    "ForebayPartitionsNotServed": (owned(31, 0), owned(32, 0)),
    "ForebayPartitionsUnplaced": (
        one("forebay_controller_partitions_unplaced", late(1, 5)),
        one("forebay_controller_partitions_unplaced", late(1, 1)),
    ),
    "ForebayTakeoverStuck": (
        one("forebay_broker_partitions_recovering", late(1, 10)),
        one("forebay_broker_partitions_recovering", late(9, 3)),
    ),
    "ForebayRequestErrors": (requests(20, "UNAVAILABLE"), requests(200, "OFFSET_OUT_OF_RANGE")),
    "ForebayOutcomesUnknown": (requests(1, "OUTCOME_UNKNOWN"), requests(1, "TIMEOUT")),
    "ForebayProduceSlow": (
        buckets("forebay_proxy_request_seconds", PRODUCE, 90, 10, "0.8192", "1.6384"),
        buckets("forebay_proxy_request_seconds", 'operation="fetch",', 0, 100, "0.8192", "1.6384"),
    ),
    "ForebayProxyMemoryExhausted": (memory(950), memory(850)),
    "ForebayDiskFilling": (
        one("forebay_storage_disk_level", late(2, 20, 1)),
        one("forebay_storage_disk_level", late(2, 10, 1)),
    ),
    "ForebayDiskClosing": (
        one("forebay_storage_disk_level", late(3, 5, 2)),
        one("forebay_storage_disk_level", still(2)),
    ),
    "ForebayDiskFull": (
        one("forebay_storage_disk_level", late(4, 1, 3)),
        one("forebay_storage_disk_level", still(3)),
    ),
    "ForebayFsyncSlow": (
        buckets("forebay_storage_journal_fsync_seconds", 'instance="n1",', 90, 10, "0.1024", "0.2048"),
        buckets("forebay_storage_journal_fsync_seconds", 'instance="n1",', 90, 10, "0.0016", "0.0032"),
    ),
    "ForebayJournalFailed": (
        one("forebay_storage_journal_failed", late(1, 1)),
        one("forebay_storage_journal_failed", still(0)),
    ),
    "ForebaySegmentsInLimbo": (
        one("forebay_storage_segments_limbo", late(1, 10)),
        one("forebay_storage_segments_limbo", still(0)),
    ),
    "ForebayStorageNodeUnreachable": (
        one("forebay_broker_nodes", still(3)) | one("forebay_broker_nodes_connected", late(2, 5, 3)),
        one("forebay_broker_nodes", still(3)) | one("forebay_broker_nodes_connected", late(2, 1, 3)),
    ),
    "ForebayReadsOverloaded": (
        one("forebay_storage_reads_overloaded_total", grows(1)),
        one("forebay_storage_reads_overloaded_total", still(7)),
    ),
    "ForebayMetadataUnreachable": (
        one(META, grows(1), 'instance="b1",operation="get",outcome="unavailable"'),
        one(META, grows(100), 'instance="b1",operation="txn",outcome="conflict"'),
    ),
    "ForebayMetadataOutcomeUnknown": (
        one(META, late(1, 5), 'instance="b1",operation="txn",outcome="unknown"'),
        one(META, still(1), 'instance="b1",operation="txn",outcome="unknown"'),
    ),
    "ForebayMetadataSlow": (
        buckets("forebay_meta_request_seconds", 'operation="txn",', 90, 10, "0.4096", "0.8192"),
        buckets("forebay_meta_request_seconds", 'operation="range",', 90, 10, "0.4096", "0.8192"),
    ),
    "ForebayNoController": (
        one("forebay_controller_leader", late(0, 5, 1)),
        one("forebay_controller_leader", still(0)) | one("forebay_controller_leader", still(1), 'instance="y"'),
    ),
    "ForebayBrokerSick": (
        one("forebay_controller_brokers", still(2)) | one("forebay_controller_brokers_live", late(1, 5, 2)),
        one("forebay_controller_brokers", still(2)) | one("forebay_controller_brokers_live", still(2)),
    ),
    "ForebayOffloadLagGrowing": (
        one(LAG, f"{4 * GIB}+{GIB // 64}{ALWAYS}"),
        one(LAG, f"{4 * GIB}-{GIB // 64}{ALWAYS}"),
    ),
    "ForebayOffloadFailing": (
        one("forebay_broker_offload_failures_total", grows(1)),
        one("forebay_broker_offload_failures_total", late(3, 5)),
    ),
    "ForebayObjectStoreErrors": (objects(50), objects(1)),
    "ForebayObjectDeletesRefused": (
        one("forebay_object_store_deletes_refused", late(1, 90)),
        one("forebay_object_store_deletes_refused", late(1, 30)),
    ),
    "ForebayProcessDown": (
        one("up", late(0, 5, 1), 'job="t-forebay-broker-metrics",instance="b1"'),
        one("up", still(0), 'job="postgres",instance="db"'),
    ),
    "ForebayProcessRestarting": (
        one("forebay_process_start_time_seconds", "100+0x100 200+0x5 300+0x5 400+0x10"),
        one("forebay_process_start_time_seconds", "100+0x100 200+0x20"),
    ),
    "ForebayFilesExhausted": (
        one("forebay_process_open_fds", still(900)) | one("forebay_process_max_fds", still(1024)),
        one("forebay_process_open_fds", still(700)) | one("forebay_process_max_fds", still(1024)),
    ),
    "ForebayBrokerBusy": (
        one("forebay_broker_mailbox_messages", late(8000, 5)),
        one("forebay_broker_mailbox_messages", late(8000, 1)),
    ),
}
