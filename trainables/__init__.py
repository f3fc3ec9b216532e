"""What one trial does: data, teacher, student, projectors, losses and the loop. Runs without Ray."""

import os

HUB_TIMEOUT = 5  # seconds; huggingface_hub, which timm imports, reads its time-outs when it is imported
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(HUB_TIMEOUT))
os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(HUB_TIMEOUT))
