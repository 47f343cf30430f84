//! Memory-mapped safetensors files: one, or many named by a `model.safetensors.index.json`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path};

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::source::{CHUNK, TensorSource};
use crate::error::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Pickled checkpoints: reading one runs code that it carries.
const PICKLED: [&str; 4] = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "pytorch_model.pt"];

/// One mapped file.
struct Shard {
    file: String,
    map: Mmap,
    /// Where the byte buffer begins.
    start: usize,
    metadata: Metadata,
}

impl Shard {
    fn open(folder: &Path, file: &str) -> Result<Self> {
        let path = folder.join(file);
        let opened = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let about = opened.metadata().map_err(|e| Error::io(&path, e))?;
        if !about.is_file() {
            return Err(Error::checkpoint(file, "expected a regular file"));
        }
        // SAFETY: the map is read-only and private to this struct. Another process that changes or truncates the file
        // while it is mapped breaks this, as for every reader that maps weights; checkpoints are written once.
        let map = unsafe { Mmap::map(&opened) }.map_err(|e| Error::io(&path, e))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            let what = format!("expected a whole safetensors file, found {} bytes of which: {e}", map.len());
            Error::checkpoint(file, what)
        })?;
        Ok(Self { file: file.to_owned(), start: size_of::<u64>() + header, map, metadata })
    }
}

/// The tensors of a folder.
pub struct Folder {
    name: String,
    shards: Vec<Shard>,
    /// Tensor to shard.
    tensors: BTreeMap<String, usize>,
}

impl Folder {
    /// Maps the weights of a Hugging Face folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let name = folder.display().to_string();
        if folder.join(SINGLE).exists() {
            let shard = Shard::open(folder, SINGLE)?;
            let tensors = shard.metadata.offset_keys().into_iter().map(|tensor| (tensor, 0)).collect();
            return Ok(Self { name: SINGLE.to_owned(), shards: vec![shard], tensors });
        }
        if folder.join(INDEX).exists() {
            return Self::open_index(folder);
        }
        if !folder.is_dir() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such folder");
            return Err(Error::io(folder, source));
        }
        let pickled = PICKLED.iter().find(|file| folder.join(file).exists());
        Err(match pickled {
            Some(file) => Error::checkpoint(
                folder.join(file).display().to_string(),
                format!("pickled weights are refused, since reading them can run code; expected {SINGLE} or {INDEX}"),
            ),
            None => Error::checkpoint(name, format!("expected {SINGLE} or {INDEX}, found neither")),
        })
    }

    fn open_index(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let index: Value =
            serde_json::from_slice(&text).map_err(|e| Error::checkpoint(INDEX, format!("expected JSON: {e}")))?;
        let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
            return Err(Error::checkpoint(INDEX, "expected an object weight_map, found none"));
        };
        let mut shards: Vec<Shard> = Vec::new();
        let mut tensors = BTreeMap::new();
        for (tensor, file) in map {
            let Some(file) = file.as_str() else {
                return Err(Error::checkpoint(INDEX, format!("{tensor}: expected a file's name, found {file}")));
            };
            inside(file)?;
            let at = if let Some(at) = shards.iter().position(|shard| shard.file == file) {
                at
            } else {
                shards.push(Shard::open(folder, file)?);
                shards.len() - 1
            };
            if shards[at].metadata.info(tensor).is_none() {
                let what = format!("expected the tensor {tensor} that {INDEX} places here, found none");
                return Err(Error::checkpoint(file, what));
            }
            tensors.insert(tensor.clone(), at);
        }
        Ok(Self { name: INDEX.to_owned(), shards, tensors })
    }
}

/// Refuses a shard's name that is more than a file's name. (Symbolic links are followed: the hub's cache is made of
/// them.)
fn inside(file: &str) -> Result<()> {
    let mut parts = Path::new(file).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    if plain && !file.contains(['/', '\\', '\0']) {
        Ok(())
    } else {
        Err(Error::checkpoint(INDEX, format!("expected shards inside the folder, found {file:?}")))
    }
}

impl TensorSource for Folder {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn label(&self, tensor: &str) -> String {
        match self.tensors.get(tensor) {
            Some(&at) => format!("{}, {tensor}", self.shards[at].file),
            None => tensor.to_owned(),
        }
    }

    fn tensors(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, tensor: &str) -> Result<Option<Vec<usize>>> {
        let Some(info) = self.tensors.get(tensor).and_then(|&at| self.shards[at].metadata.info(tensor)) else {
            return Ok(None);
        };
        match info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => Ok(Some(info.shape.clone())),
            other => {
                let what = format!("expected dtype F32, F16, BF16 or F64, found {other:?}");
                Err(Error::checkpoint(self.label(tensor), what))
            }
        }
    }

    fn read(&self, tensor: &str) -> Result<Cow<'_, [f32]>> {
        let missing = || Error::checkpoint(&self.name, format!("expected a tensor {tensor}, found none"));
        let shard = self.tensors.get(tensor).map(|&at| &self.shards[at]).ok_or_else(missing)?;
        let info = shard.metadata.info(tensor).ok_or_else(missing)?;
        let (from, to) = info.data_offsets;
        let bytes = shard.map.get(shard.start + from..shard.start + to).ok_or_else(missing)?;
        Ok(match info.dtype {
            Dtype::F32 => as_f32(bytes),
            Dtype::F16 => Cow::Owned(convert(bytes, |from: &[[u8; 2]], to| {
                let halves: Vec<f16> = from.iter().map(|b| f16::from_le_bytes(*b)).collect();
                halves.convert_to_f32_slice(to);
            })),
            Dtype::BF16 => Cow::Owned(convert(bytes, |from: &[[u8; 2]], to| {
                for (x, b) in to.iter_mut().zip(from) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            })),
            Dtype::F64 => Cow::Owned(convert(bytes, |from: &[[u8; 8]], to| {
                for (x, b) in to.iter_mut().zip(from) {
                    *x = f64::from_le_bytes(*b) as f32;
                }
            })),
            other => {
                let what = format!("expected dtype F32, F16, BF16 or F64, found {other:?}");
                return Err(Error::checkpoint(self.label(tensor), what));
            }
        })
    }
}

/// Little-endian f32: as they lie, or converted where the file does not align them.
fn as_f32(bytes: &[u8]) -> Cow<'_, [f32]> {
    if cfg!(target_endian = "little") {
        // SAFETY: every bit pattern is an f32, and `align_to` itself finds the aligned middle.
        let (before, middle, after) = unsafe { bytes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return Cow::Borrowed(middle);
        }
    }
    Cow::Owned(convert(bytes, |from: &[[u8; 4]], to| {
        for (x, b) in to.iter_mut().zip(from) {
            *x = f32::from_le_bytes(*b);
        }
    }))
}

/// Converts chunks in parallel. `bytes` is a whole number of elements: the header was checked.
fn convert<const N: usize>(bytes: &[u8], chunk: impl Fn(&[[u8; N]], &mut [f32]) + Sync) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut out = vec![0.0; elements.len()];
    out.par_chunks_mut(CHUNK).zip(elements.par_chunks(CHUNK)).for_each(|(to, from)| chunk(from, to));
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    /// A folder of its own, removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(file: &str, bytes: &[u8]) -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("signflip-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), bytes).unwrap();
            Self(folder)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A file, written out here byte by byte: one tensor `x` after `padding` spaces of the header.
    fn file(dtype: &str, elements: usize, data: &[u8], padding: usize) -> Vec<u8> {
        let header = format!(r#"{{"x":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, data.len());
        let header = format!("{header}{}", " ".repeat((8 - header.len() % 8) % 8 + padding));
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn read(dtype: &str, elements: usize, data: &[u8], padding: usize) -> (bool, Vec<f32>) {
        let scratch = Scratch::new(SINGLE, &file(dtype, elements, data, padding));
        let folder = Folder::open(&scratch.0).unwrap();
        assert_eq!(folder.shape("x").unwrap(), Some(vec![elements]));
        let values = folder.read("x").unwrap();
        (matches!(values, Cow::Borrowed(_)), values.into_owned())
    }

    #[test]
    fn aligned_f32_is_not_copied() {
        let values = [1.5_f32, -0.0, f32::MIN_POSITIVE, 3e38];
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read("F32", 4, &bytes, 0), (cfg!(target_endian = "little"), values.to_vec()));
        assert_eq!(read("F32", 4, &bytes, 1), (false, values.to_vec()), "a header that does not align its data");
    }

    #[test]
    fn every_half_is_converted_exactly() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let same = |found: Vec<f32>, wanted: fn(u16) -> f64| {
            for (bits, x) in (0..=u16::MAX).zip(found) {
                let wanted = wanted(bits);
                assert!(f64::from(x) == wanted || (x.is_nan() && wanted.is_nan()), "{bits:#06x}: {x} {wanted}");
            }
        };
        same(read("F16", 65_536, &all, 1).1, |bits| f16::from_bits(bits).to_f64());
        same(read("BF16", 65_536, &all, 1).1, |bits| bf16::from_bits(bits).to_f64());
    }

    #[test]
    fn shards_are_plain_names() {
        for name in ["a.safetensors", "model-00001-of-00002.safetensors"] {
            assert!(inside(name).is_ok());
        }
        for name in ["", ".", "..", "/etc/passwd", "../a", "a/b", "a/", "./a", "a\\b", "a\0b"] {
            assert!(inside(name).is_err(), "{name:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever is done to a file, it is read or refused; and what is read has the size that its shape says.
        #[test]
        fn mutated_files_are_read_or_refused(
            changes in prop::collection::vec((0_usize..120, any::<u8>()), 0..4),
            keep in prop::option::of(0_usize..120),
        ) {
            let mut bytes = file("F32", 4, &[0; 16], 0);
            for (at, byte) in changes {
                let len = bytes.len();
                bytes[at % len] = byte;
            }
            bytes.truncate(keep.unwrap_or(usize::MAX));
            let scratch = Scratch::new(SINGLE, &bytes);
            match Folder::open(&scratch.0) {
                Err(error) => prop_assert_eq!(error.class(), "CheckpointError"),
                Ok(folder) => for name in folder.tensors() {
                    if let Ok(Some(shape)) = folder.shape(name) {
                        prop_assert_eq!(folder.read(name).unwrap().len(), shape.iter().product::<usize>());
                    }
                },
            }
        }
    }
}
