"""How clusters label their GPU nodes, by GPU type: what a pod's node affinity asks for.

`nvidia.com/gpu.product` is set by NVIDIA's GPU feature discovery, from the name that the driver gives the
card; `amd.com/gpu.product-name` by AMD's node labeller; `cloud.google.com/gke-accelerator` by GKE. Cards that
are split (MIG) or shared carry another product name and are not asked for.
"""

from llmpilot.config import Gpu

NVIDIA = "nvidia.com/gpu.product"
AMD = "amd.com/gpu.product-name"
GKE = "cloud.google.com/gke-accelerator"

LABELS: dict[str, dict[str, list[str]]] = {
    # AWS sells the A10G, and the catalogue has its price.
    "A10": {NVIDIA: ["NVIDIA-A10", "NVIDIA-A10G"]},
    "A100-40GB": {NVIDIA: ["NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"], GKE: ["nvidia-tesla-a100"]},
    "A100-80GB": {NVIDIA: ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"], GKE: ["nvidia-a100-80gb"]},
    "B200": {NVIDIA: ["NVIDIA-B200"], GKE: ["nvidia-b200"]},
    "B300": {NVIDIA: ["NVIDIA-B300-SXM6-AC"], GKE: ["nvidia-b300"]},
    "GB200": {NVIDIA: ["NVIDIA-GB200"], GKE: ["nvidia-gb200"]},
    "GB300": {NVIDIA: ["NVIDIA-GB300"], GKE: ["nvidia-gb300"]},
    "GH200": {NVIDIA: ["NVIDIA-GH200-480GB"]},
    "H100": {NVIDIA: ["NVIDIA-H100-80GB-HBM3"], GKE: ["nvidia-h100-80gb", "nvidia-h100-mega-80gb"]},
    "H200": {NVIDIA: ["NVIDIA-H200"], GKE: ["nvidia-h200-141gb"]},
    "H20": {NVIDIA: ["NVIDIA-H20"]},
    "L4": {NVIDIA: ["NVIDIA-L4"], GKE: ["nvidia-l4"]},
    "L40S": {NVIDIA: ["NVIDIA-L40S"]},
    "MI300X": {AMD: ["AMD_Instinct_MI300X_OAM"]},
    "MI325X": {AMD: ["AMD_Instinct_MI325X_OAM"]},
    "RTX-4090": {NVIDIA: ["NVIDIA-GeForce-RTX-4090"]},
    "RTX-PRO-6000": {
        NVIDIA: ["NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition"],
        GKE: ["nvidia-rtx-pro-6000"],
    },
    "T4": {NVIDIA: ["Tesla-T4"], GKE: ["nvidia-tesla-t4"]},
    "V100": {
        NVIDIA: ["Tesla-V100-SXM2-16GB", "Tesla-V100-PCIE-16GB"],
        GKE: ["nvidia-tesla-v100"],
    },
}


def labels_of(gpu: Gpu) -> dict[str, list[str]]:
    """Return label -> values for nodes that hold this GPU type, any of them; empty where it is not known."""
    return LABELS.get(gpu.name, {})
