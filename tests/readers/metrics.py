"""What Prometheus's own client makes of a scrape: JSON of its families.

metrics.py open|older <scrape
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as older

parse = {"open": open_metrics, "older": older}[sys.argv[1]]
families = [
    {
        "name": family.name,
        "type": family.type,
        "unit": family.unit,
        "help": family.documentation,
        "samples": [[s.name, s.labels, s.value] for s in family.samples],
    }
    for family in parse(sys.stdin.read())
]
json.dump(families, sys.stdout)
