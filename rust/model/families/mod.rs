//! One file a family: from `config.json` and tensor names to a [`ModelSpec`](super::spec::ModelSpec) and host weights.
