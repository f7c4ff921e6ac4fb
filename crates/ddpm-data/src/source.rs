//! The data sets that have names: what they are, where their files may be, how to get them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gather::gather;
use crate::hub::{self, HubName};
use crate::shelf::Shelf;
use crate::{
    Dataset, Error, Keep, Pictures, Result, Splits, cifar, folder, idx, rows, tiny_imagenet,
};

/// A data set as it is named on a command line and in settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum DataSpec {
    /// The 1,797 handwritten digits of 8x8 pixels inside this crate.
    Digits,
    /// MNIST (LeCun, Cortes, Burges, 1998): handwritten digits of 28x28 pixels.
    Mnist,
    /// Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): pieces of clothing of 28x28 pixels, in MNIST's format.
    FashionMnist,
    /// CIFAR-10 (Krizhevsky, 2009): photographs of 32x32 pixels in ten classes.
    Cifar10,
    /// Tiny ImageNet (Stanford CS231n, 2015): photographs of 64x64 pixels in 200 classes.
    TinyImagenet,
    /// The picture files in this folder and below it, the first sub-folder of each being its class.
    Folder(PathBuf),
    /// The pictures in a parquet file, in those of a folder, or in those that a pattern matches.
    Parquet(PathBuf),
    /// A data set of the Hugging Face Hub, `OWNER/NAME`, or `OWNER/NAME/FOLDER` where it has several.
    Hub(String),
}

/// What comes before a folder's path.
const FOLDER: &str = "folder:";
/// What comes before the path of parquet files.
const PARQUET: &str = "parquet:";
/// What comes before a name on the Hub.
const HUB: &str = "hub:";

/// Where Debian's packages `dataset-*` put data sets.
const SYSTEM: &str = "/usr/share/datasets";
/// Where the digits are.
const INSIDE: &str = "inside the program";
/// The two parts of a data set, and what their files' names begin with.
const PARTS: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];
/// The first ten training labels of each data set in MNIST's format, by which one is known from another.
const FIRST_LABELS: [(DataSpec, [u32; 10]); 2] = [
    (DataSpec::Mnist, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    (DataSpec::FashionMnist, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
];

/// Finds a data set, reads it whole, and checks it.
///
/// `data_dir` is where the user keeps data; `None` stands for `$DDPM_DATA`, or `data` where that is not set. The places
/// looked at are those of [`places`], the first that has any of the files wins. For `digits`, which are inside this crate,
/// and for what has a path, no place is looked at.
///
/// # Errors
/// [`Error::NotFound`] with every place and the commands that would fetch it, [`Error::FileMissing`],
/// [`Error::OtherDataset`], [`Error::Shape`], and what [`load_with`], [`idx`] or [`cifar`] says of a file.
pub fn load(spec: &DataSpec, data_dir: Option<&Path>) -> Result<Splits> {
    load_with(spec, data_dir, &Pictures::default(), &Keep::default())
}

/// As [`load`], and tells what pictures are made into, where the data set [has any](DataSpec::has_pictures), and how they
/// are kept; other data sets are as their files have them.
///
/// # Errors
/// As [`load`]; for pictures, [`Error::Pictures`], [`Error::Open`], [`Error::Folder`], [`Error::Zip`],
/// [`Error::Parquet`], [`Error::Unreadable`] and [`Error::Cache`].
pub fn load_with(
    spec: &DataSpec,
    data_dir: Option<&Path>,
    pictures: &Pictures,
    keep: &Keep,
) -> Result<Splits> {
    pictures.check()?;
    let shelf = match spec {
        DataSpec::Digits => return digits(),
        DataSpec::Mnist | DataSpec::FashionMnist => {
            return load_idx(spec, &places(spec, data_dir));
        }
        DataSpec::Cifar10 => return load_cifar(&places(spec, data_dir), keep),
        DataSpec::TinyImagenet => {
            let places = places(spec, data_dir);
            let found = tiny_imagenet::find(&places).ok_or_else(|| not_found(spec, &places))?;
            tiny_imagenet::shelf(&found)?
        }
        DataSpec::Folder(path) => folder::shelf(path)?,
        DataSpec::Parquet(path) => rows::shelf("parquet", path, rows::files(path)?)?,
        DataSpec::Hub(name) => hub_shelf(spec, name, data_dir)?,
    };
    gather(shelf, pictures, keep)
}

/// A data set of the Hub, from wherever it was fetched to; with the feature `hub` it is fetched where it is nowhere.
fn hub_shelf(spec: &DataSpec, name: &str, data_dir: Option<&Path>) -> Result<Shelf<'static>> {
    let known = HubName::parse(name).map_err(|why| Error::Spec {
        spec: spec.to_string(),
        why,
    })?;
    let places = places(spec, data_dir);
    let mut files = hub::find(&known, &places)?;
    #[cfg(feature = "hub")]
    if files.is_none() {
        crate::fetch(spec, data_dir, None, &mut |_| {})?;
        files = hub::find(&known, &places)?;
    }
    let files = files.take().ok_or_else(|| not_found(spec, &places))?;
    rows::shelf("hub", Path::new(&spec.to_string()), files)
}

/// The folders in which a data set is looked for, in order; none for `digits` and what has a path, which are where they
/// are; for a name on the Hub, the caches of its clients.
pub fn places(spec: &DataSpec, data_dir: Option<&Path>) -> Vec<PathBuf> {
    let data_dir = data_dir.map_or_else(default_data_dir, Path::to_owned);
    match spec {
        DataSpec::Digits | DataSpec::Folder(_) | DataSpec::Parquet(_) => return Vec::new(),
        DataSpec::Hub(_) => return hub::caches(&data_dir),
        _ => {}
    }
    vec![
        data_dir.join(spec.name()),
        data_dir,
        Path::new(SYSTEM).join(spec.name()),
    ]
}

/// The commands that would fetch a data set, a few lines to show to a person.
pub fn how_to_get(spec: &DataSpec, data_dir: Option<&Path>) -> String {
    let data_dir = data_dir.map_or_else(default_data_dir, Path::to_owned);
    let folder = data_dir.join(spec.name()).display().to_string();
    let there = match data_dir == default_data_dir() {
        true => String::new(),
        false => format!(" --data-dir {}", data_dir.display()),
    };
    let fetch = format!("cargo xtask data {spec}{there}");
    let files = format!(
        "the four original files, gzipped or not, into {folder}:\n  \
         train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz"
    );
    match spec {
        DataSpec::Digits => "nothing to get: the digits are inside the program".to_owned(),
        DataSpec::Folder(path) => {
            format!("nothing to get: put picture files into {}", path.display())
        }
        DataSpec::Parquet(path) => {
            format!("nothing to get: put parquet files at {}", path.display())
        }
        DataSpec::Mnist => format!("to get it (12 MB):\n  {fetch}\nor put {files}"),
        DataSpec::FashionMnist => format!(
            "to get it (31 MB):\n  {fetch}\nor, on Debian or Ubuntu:\n  apt-get install dataset-fashion-mnist\n\
             or put {files}"
        ),
        DataSpec::Cifar10 => format!(
            "to get it (170 MB):\n  {fetch}\nor put into {folder} {archive}, packed or unpacked (the binary version, not \
             the one for Python), or the parquet files of the Hub's uoft-cs/cifar10",
            archive = cifar::ARCHIVE
        ),
        DataSpec::TinyImagenet => format!(
            "to get it (248 MB):\n  {fetch}\nor put into {folder} {archive}, packed or unpacked",
            archive = tiny_imagenet::ARCHIVE
        ),
        DataSpec::Hub(_) => format!(
            "to get it, which builds what speaks to the Hub (a few minutes, once):\n  {fetch}\n\
             or build the trainer with it, so that it fetches by itself: cargo run --release -p ddpm-train --features hub"
        ),
    }
}

impl DataSpec {
    /// Every data set that has a name of its own, here.
    pub const ALL: [Self; 5] = [
        Self::Digits,
        Self::Mnist,
        Self::FashionMnist,
        Self::Cifar10,
        Self::TinyImagenet,
    ];

    /// Whether it is made of pictures, which can be resized and be of any colour kind, as [`Pictures`] says.
    pub fn has_pictures(&self) -> bool {
        match self {
            Self::Digits | Self::Mnist | Self::FashionMnist | Self::Cifar10 => false,
            Self::TinyImagenet | Self::Folder(_) | Self::Parquet(_) | Self::Hub(_) => true,
        }
    }

    /// The name it is called by: `digits`, `mnist`, `fashion-mnist`, `cifar10`, `tiny-imagenet`; `folder`, `parquet` and
    /// `hub` for any of these.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar10",
            Self::TinyImagenet => "tiny-imagenet",
            Self::Folder(_) => "folder",
            Self::Parquet(_) => "parquet",
            Self::Hub(_) => "hub",
        }
    }

    /// What its classes are called, class 0 first; those of pictures are known when they have been read.
    pub fn class_names(&self) -> Vec<String> {
        let names = match self {
            Self::Digits | Self::Mnist => ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            Self::FashionMnist => [
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ],
            Self::Cifar10 => cifar::CLASSES,
            Self::TinyImagenet | Self::Folder(_) | Self::Parquet(_) | Self::Hub(_) => {
                return Vec::new();
            }
        };
        names.map(str::to_owned).to_vec()
    }
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(spec) = Self::ALL.into_iter().find(|spec| spec.name() == text) {
            return Ok(spec);
        }
        let wrong = |why: String| Error::Spec {
            spec: text.to_owned(),
            why,
        };
        for (prefix, make) in PREFIXES {
            match text.strip_prefix(prefix) {
                None => {}
                Some("") => return Err(wrong("no path given".to_owned())),
                Some(rest) => return Ok(make(rest)),
            }
        }
        match text.strip_prefix(HUB) {
            None => Err(wrong("unknown".to_owned())),
            Some(name) => {
                HubName::parse(name).map_err(wrong)?;
                Ok(Self::Hub(name.to_owned()))
            }
        }
    }
}

/// What stands before a path, and what it makes of it.
type Prefix = (&'static str, fn(&str) -> DataSpec);

const PREFIXES: [Prefix; 2] = [
    (FOLDER, |path| DataSpec::Folder(PathBuf::from(path))),
    (PARQUET, |path| DataSpec::Parquet(PathBuf::from(path))),
];

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{FOLDER}{}", path.display()),
            Self::Parquet(path) => write!(f, "{PARQUET}{}", path.display()),
            Self::Hub(name) => write!(f, "{HUB}{name}"),
            _ => f.write_str(self.name()),
        }
    }
}

impl TryFrom<String> for DataSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DataSpec> for String {
    fn from(spec: DataSpec) -> Self {
        spec.to_string()
    }
}

/// `$DDPM_DATA`, or `data` where that is not set or empty.
pub(crate) fn default_data_dir() -> PathBuf {
    match std::env::var_os("DDPM_DATA") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from("data"),
    }
}

/// The embedded digits.
fn digits() -> Result<Splits> {
    macro_rules! part {
        ($part:literal, $prefix:literal) => {{
            let images =
                include_bytes!(concat!("../digits/", $prefix, "-images-idx3-ubyte.gz")).as_slice();
            let labels =
                include_bytes!(concat!("../digits/", $prefix, "-labels-idx1-ubyte.gz")).as_slice();
            let spec = &DataSpec::Digits;
            let place = |file: &str| Path::new(INSIDE).join(file);
            let images =
                idx::images_from(images, &place(concat!($prefix, "-images")), Some((8, 8)))?;
            let labels = idx::labels_from(labels, &place(concat!($prefix, "-labels")), 10)?;
            assemble(spec, $part, images, labels)?
        }};
    }
    Ok(Splits {
        origin: INSIDE.to_owned(),
        train: part!("train", "train"),
        test: Some(part!("test", "t10k")),
        skipped: Vec::new(),
    })
}

/// The four IDX files in the first of `places` that has any of them.
fn load_idx(spec: &DataSpec, places: &[PathBuf]) -> Result<Splits> {
    let files = PARTS.map(|(_, prefix)| {
        [
            format!("{prefix}-images-idx3-ubyte"),
            format!("{prefix}-labels-idx1-ubyte"),
        ]
    });
    let present = |folder: &PathBuf| files.iter().flatten().find_map(|file| find(folder, file));
    let Some((folder, present)) = places
        .iter()
        .find_map(|folder| Some((folder, present(folder)?)))
    else {
        return Err(not_found(spec, places));
    };
    let required = |file: &str| {
        find(folder, file).ok_or_else(|| Error::FileMissing {
            name: spec.to_string(),
            folder: folder.clone(),
            expected: format!("`{file}` or `{file}.gz`"),
            files: "four",
            present: present.clone(),
        })
    };
    let mut paths = Vec::with_capacity(4);
    for file in files.iter().flatten() {
        paths.push(required(file)?);
    }
    let part = |part: usize| {
        let classes = spec.class_names().len() as u32;
        let labels = idx::read_labels(&paths[2 * part + 1], classes)?;
        if part == 0 {
            check_first_labels(spec, &labels, &paths[1])?;
        }
        let images = idx::read_images(&paths[2 * part], Some((28, 28)))?;
        if images.n != labels.len() {
            let (n, m) = (images.n, labels.len());
            let (images, labels) = (paths[2 * part].display(), paths[2 * part + 1].display());
            let what =
                format!("{images} has {n} images, {labels} has {m} labels, expected as many");
            return Err(Error::Shape {
                name: spec.to_string(),
                what,
            });
        }
        assemble(spec, PARTS[part].0, images, labels)
    };
    Ok(Splits {
        origin: folder.display().to_string(),
        train: part(0)?,
        test: Some(part(1)?),
        skipped: Vec::new(),
    })
}

/// That none of `places` has the data set.
fn not_found(spec: &DataSpec, places: &[PathBuf]) -> Error {
    let data_dir = places.get(1).map(PathBuf::as_path);
    Error::NotFound {
        name: spec.to_string(),
        looked: places.to_vec(),
        how_to_get: how_to_get(spec, data_dir),
    }
}

/// CIFAR-10 in the first of `places` that has a batch, a folder of batches, the archive, or the parquet files.
fn load_cifar(places: &[PathBuf], keep: &Keep) -> Result<Splits> {
    let spec = &DataSpec::Cifar10;
    let present = |folder: &Path| {
        cifar::FILES
            .map(|file| folder.join(file))
            .into_iter()
            .find(|path| path.is_file())
    };
    let mut found = None;
    for place in places {
        let folders = [place.join(cifar::FOLDER), place.clone()];
        let batch = folders
            .into_iter()
            .find_map(|folder| Some((present(&folder)?, folder)));
        let archive = place.join(cifar::ARCHIVE);
        if let Some((present, folder)) = batch {
            found = Some((folder.clone(), cifar_folder(&folder, &present)?));
        } else if archive.is_file() {
            found = Some((archive.clone(), cifar::read_archive(&archive)?));
        } else if let Some((folder, files)) = cifar_parquet(place) {
            return gather(cifar_shelf(&folder, files)?, &Pictures::default(), keep);
        }
        if found.is_some() {
            break;
        }
    }
    let Some((origin, batches)) = found else {
        return Err(not_found(spec, places));
    };
    let mut parts = [cifar::Batch::default(), cifar::Batch::default()];
    for (place, batch) in batches.into_iter().enumerate() {
        parts[place / 5].extend(batch);
    }
    let [train, test] = parts;
    let make = |part: &str, batch: cifar::Batch| {
        let size = (cifar::SIZE, cifar::SIZE, 3);
        Dataset::new(
            &format!("{spec} {part}"),
            batch.pixels,
            size,
            Some(batch.labels),
            spec.class_names(),
        )
    };
    Ok(Splits {
        origin: origin.display().to_string(),
        train: make("train", train)?,
        test: Some(make("test", test)?),
        skipped: Vec::new(),
    })
}

/// The folder below a place that has the parquet files of the Hub's `uoft-cs/cifar10`, and these.
fn cifar_parquet(place: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let folders = [place.join("plain_text"), place.to_owned()];
    folders.into_iter().find_map(|folder| {
        let files = cifar::PARQUET.map(|file| folder.join(file));
        let there = files.iter().any(|file| file.is_file());
        there.then(|| (folder, files.to_vec()))
    })
}

/// The pictures of both files, once they are known to be CIFAR-10's.
fn cifar_shelf(folder: &Path, files: Vec<PathBuf>) -> Result<Shelf<'static>> {
    let spec = &DataSpec::Cifar10;
    let (there, missing): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.is_file());
    if let Some(file) = missing.first() {
        return Err(Error::FileMissing {
            name: spec.to_string(),
            folder: folder.to_owned(),
            expected: format!("`{}`", file.file_name().unwrap_or_default().display()),
            files: "two",
            present: there
                .first()
                .map(|file| file.to_path_buf())
                .unwrap_or_default(),
        });
    }
    let shelf = rows::shelf(spec.name(), folder, files.clone())?;
    if !shelf.classes.is_empty() && shelf.classes != spec.class_names() {
        return Err(Error::OtherDataset {
            path: files[0].clone(),
            expected: spec.to_string(),
            found: format!("a data set of {}", shelf.classes.join(", ")),
        });
    }
    Ok(Shelf {
        classes: spec.class_names(),
        size: Some((cifar::SIZE, cifar::SIZE)),
        ..shelf
    })
}

/// The six batches of a folder, of which `present` is there.
fn cifar_folder(folder: &Path, present: &Path) -> Result<Vec<cifar::Batch>> {
    if let Some(file) = cifar::FILES
        .iter()
        .find(|file| !folder.join(file).is_file())
    {
        return Err(Error::FileMissing {
            name: DataSpec::Cifar10.to_string(),
            folder: folder.to_owned(),
            expected: format!("`{file}`"),
            files: "six",
            present: present.to_owned(),
        });
    }
    cifar::FILES
        .iter()
        .map(|file| cifar::read_batch(&folder.join(file)))
        .collect()
}

/// The file of this name in a folder: as it is, gzipped, or with the dot that some mirrors put before `idx`.
fn find(folder: &Path, file: &str) -> Option<PathBuf> {
    let dotted = file.replace("-idx", ".idx");
    [
        file.to_owned(),
        format!("{file}.gz"),
        dotted.clone(),
        format!("{dotted}.gz"),
    ]
    .iter()
    .map(|file| folder.join(file))
    .find(|path| path.is_file())
}

/// Data sets in MNIST's format have the same file names; training on the wrong one would go unnoticed.
fn check_first_labels(spec: &DataSpec, labels: &[u32], path: &Path) -> Result<()> {
    let found = FIRST_LABELS
        .iter()
        .find(|(_, first)| labels.starts_with(first));
    match found {
        Some((other, _)) if other != spec => Err(Error::OtherDataset {
            path: path.to_owned(),
            expected: spec.to_string(),
            found: other.to_string(),
        }),
        _ => Ok(()),
    }
}

fn assemble(spec: &DataSpec, part: &str, images: idx::Images, labels: Vec<u32>) -> Result<Dataset> {
    let size = (images.height, images.width, 1);
    Dataset::new(
        &format!("{spec} {part}"),
        images.pixels,
        size,
        Some(labels),
        spec.class_names(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_names_every_place_and_the_commands() {
        let places = ["/absent/fashion-mnist", "/absent", "/absent/system"].map(PathBuf::from);
        let message = load_idx(&DataSpec::FashionMnist, &places)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "data set `fashion-mnist` not found; looked in /absent/fashion-mnist, /absent, /absent/system\n\
             to get it (31 MB):\n  cargo xtask data fashion-mnist --data-dir /absent\n\
             or, on Debian or Ubuntu:\n  apt-get install dataset-fashion-mnist\n\
             or put the four original files, gzipped or not, into /absent/fashion-mnist:\n  \
             train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz"
        );
        let message = load_idx(&DataSpec::Mnist, &places).unwrap_err().to_string();
        assert!(
            message.contains("or put the four original files, gzipped or not, into /absent/mnist:")
        );
        assert!(how_to_get(&DataSpec::Digits, None).contains("nothing to get"));
    }

    #[test]
    fn debian_packages_are_looked_at_last() {
        let places = places(&DataSpec::FashionMnist, Some(Path::new("d")));
        assert_eq!(
            places,
            ["d/fashion-mnist", "d", "/usr/share/datasets/fashion-mnist"].map(PathBuf::from)
        );
        assert!(super::places(&DataSpec::Digits, None).is_empty());
    }
}
