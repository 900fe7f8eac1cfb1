"""Counts of graphs, known without reading or making one.

Bytes follow from counts alone, so a shape is all that a book of bytes needs, and the
synthetic graphs are drawn to these very counts. Sources: ogbn-arxiv, the label and
split files of RELEASE_v1, with 1,166,243 citations merged to 1,157,799 undirected
pairs; ogbn-products, the published counts of Open Graph Benchmark; Flickr, GraphSAINT's
files; Reddit, the counts that torch_geometric and DGL publish; Cora, CiteSeer and
PubMed, their files with the public split.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphSizes:
    """Counts that memory and time depend on."""

    num_nodes: int
    num_entries: int  # directed edges; an undirected one counts twice
    num_features: int
    num_classes: int
    num_train: int
    num_validation: int  # the remaining nodes are the test nodes, but for Planetoid


ARXIV = GraphSizes(169_343, 2_315_598, 128, 40, 90_941, 29_799)
FLICKR = GraphSizes(89_250, 899_756, 500, 7, 44_625, 22_312)
REDDIT = GraphSizes(232_965, 114_615_892, 602, 41, 153_431, 23_831)
PRODUCTS = GraphSizes(2_449_029, 123_718_280, 100, 47, 196_615, 39_323)


def scaled_arxiv(num_nodes: int) -> GraphSizes:
    """Another number of nodes with ogbn-arxiv's mean degree, widths and split shares.

    >>> scaled_arxiv(169_343) == ARXIV
    True
    """

    def share(count: int) -> int:
        return round(num_nodes * count / ARXIV.num_nodes)

    return GraphSizes(
        num_nodes,
        2 * share(ARXIV.num_entries // 2),
        ARXIV.num_features,
        ARXIV.num_classes,
        share(ARXIV.num_train),
        share(ARXIV.num_validation),
    )


GRAPH_SIZES: dict[str, GraphSizes] = {
    "arxiv_shape": ARXIV,
    "flickr_shape": FLICKR,
    "reddit_shape": REDDIT,
    "products_shape": PRODUCTS,
    "nodes_10k": scaled_arxiv(10_000),
    "nodes_30k": scaled_arxiv(30_000),
    "nodes_100k": scaled_arxiv(100_000),
    "nodes_300k": scaled_arxiv(300_000),
    "nodes_1m": scaled_arxiv(1_000_000),
    "cora": GraphSizes(2_708, 10_556, 1_433, 7, 140, 500),
    "citeseer": GraphSizes(3_327, 9_104, 3_703, 6, 120, 500),
    "pubmed": GraphSizes(19_717, 88_648, 500, 3, 60, 500),
    "flickr": FLICKR,
    "reddit": REDDIT,
    "ogbn_arxiv": ARXIV,
}
