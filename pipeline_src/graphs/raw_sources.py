"""Where raw graph files come from, what they are called here, and their checksums.

Paths are those of torch_geometric's and ogb's own loaders, so that a folder which
these have filled serves as a mirror, and a folder filled here serves them.

Checksums: sha256, or git, the blob id that the publishing repository lists for the
file (`git hash-object`). Where no trustworthy value is known there is none.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

PLANETOID = "https://github.com/kimiyoung/planetoid/raw/master/data"
GNN_BENCHMARK = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz"
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?confirm=t&id="
DGL = "https://data.dgl.ai/dataset"
OGB = "http://snap.stanford.edu/ogb/data/nodeproppred"


@dataclass(frozen=True)
class RawFile:
    """One file of a source."""

    path: str  # below the source's folder
    url: str | None = None  # None: a member of the source's archive
    checksum: str | None = None  # "sha256:..." or "git:..."


@dataclass(frozen=True)
class RawSource:
    """The raw files behind one graph."""

    graph: str  # name in the configuration and of the prepared graph
    files: tuple[RawFile, ...]
    archive: str | None = None  # address of a zip that holds the files ...
    archive_folder: str = ""  # ... below this folder
    archive_omits: str = ""  # folder of all the files that the archive does not have

    def member(self, file: RawFile) -> str:
        """Name of a file in the archive.

        >>> reddit = RAW_SOURCES["Reddit"]
        >>> reddit.files[0].path, reddit.member(reddit.files[0])
        ('raw/reddit_data.npz', 'reddit_data.npz')
        """
        path = PurePosixPath(file.path).relative_to(self.archive_omits)
        return str(PurePosixPath(self.archive_folder) / path)


def _planetoid(name: str, checksums: dict[str, str]) -> RawSource:
    return RawSource(
        graph=name,
        files=tuple(
            RawFile(
                f"raw/ind.{name}.{part}",
                f"{PLANETOID}/ind.{name}.{part}",
                f"sha256:{checksum}",
            )
            for part, checksum in checksums.items()
        ),
    )


def _gnn_benchmark(graph: str, file: str, checksum: str) -> RawSource:
    return RawSource(
        graph, (RawFile(f"raw/{file}", f"{GNN_BENCHMARK}/{file}", checksum),)
    )


# The keys are the names of the folders, here and on a mirror.
RAW_SOURCES: dict[str, RawSource] = {
    "Cora": _planetoid(
        "cora",
        {
            "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
            "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
            "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
            "test.index": (
                "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"
            ),
            "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
            "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
            "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
            "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        },
    ),
    "CiteSeer": _planetoid(
        "citeseer",
        {
            "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
            "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
            "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
            "test.index": (
                "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"
            ),
            "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
            "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
            "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
            "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        },
    ),
    "PubMed": _planetoid(
        "pubmed",
        {
            "allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
            "ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
            "graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
            "test.index": (
                "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"
            ),
            "tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
            "ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
            "x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
            "y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        },
    ),
    "Computers": _gnn_benchmark(
        "computers",
        "amazon_electronics_computers.npz",
        "sha256:736ba1d9fd85eac2da83a5ad25c463f04b0031a6ca01563f90a7099d9e8ffb2c",
    ),
    "Photo": _gnn_benchmark(
        "photo",
        "amazon_electronics_photo.npz",
        "git:97323743cb56aca9dd611f5b4b46862c1c9c6bd9",
    ),
    "CS": _gnn_benchmark(
        "coauthor_cs",
        "ms_academic_cs.npz",
        "git:9bdd7da943d86b74297e8d32e99eb64245b52835",
    ),
    "Physics": _gnn_benchmark(
        "coauthor_physics",
        "ms_academic_phy.npz",
        "git:8d8bc12e29aa67f6753a712080eae81079bd7d01",
    ),
    "Flickr": RawSource(
        "flickr",
        tuple(
            RawFile(f"raw/{file}", GOOGLE_DRIVE + drive_id)
            for file, drive_id in {
                "adj_full.npz": "1crmsTbd1-2sEXsGwa2IKnIB7Zd3TmUsy",
                "feats.npy": "1join-XdvX3anJU_MLVtick7MgeAQiWIZ",
                "class_map.json": "1uxIkbtg5drHTsKt-PAsZZ4_yJmgFmle9",
                "role.json": "1htXCtuktuCW8TR8KiKfrFDAxUgekQoV7",
            }.items()
        ),
    ),
    "Reddit": RawSource(
        "reddit",
        (RawFile("raw/reddit_data.npz"), RawFile("raw/reddit_graph.npz")),
        archive=f"{DGL}/reddit.zip",
        archive_omits="raw",
    ),
    "ogbn_arxiv": RawSource(
        "ogbn_arxiv",
        (
            RawFile(
                "raw/edge.csv.gz",
                checksum="git:79a501578454cfb045c7de245e7c7a7804246152",
            ),
            RawFile("raw/node-feat.csv.gz"),
            RawFile(
                "raw/node-label.csv.gz",
                checksum="sha256:b06e7cf75d909de66ce49bc4188a6dc525224f85dd6dcb36137de3d9321830d1",
            ),
            RawFile(
                "raw/num-node-list.csv.gz",
                checksum="sha256:9aa60a342efd209408933ace51e6b0a814e81c2894a993c44f9b173e477e2e82",
            ),
            RawFile(
                "split/time/train.csv.gz",
                checksum="sha256:84983391900af45194e5db8d977ec9e01d4eda96e20328f3d7575fdd45c6797c",
            ),
            RawFile(
                "split/time/valid.csv.gz",
                checksum="sha256:ebe6cdcd77c75eedbce2064a05a49bc28e2c4a631f49d66b9e9ff317eef993eb",
            ),
            RawFile(
                "split/time/test.csv.gz",
                checksum="sha256:588fb66ce57bcaef51ac0235f0a49a056370ac31fc27c8ebf556d3f5cdd02545",
            ),
        ),
        archive=f"{OGB}/arxiv.zip",
        archive_folder="arxiv",
    ),
}
