//! Where the images go: the place is claimed before sampling starts and filled whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use ddpm_image::{
    Film, Picture, PixelMap, Timing, encode_gif, encode_png, sheet, sheet_with_columns, write_png,
};

use crate::classes::Labels;
use crate::npz::{Array, write_npz};

/// A claimed place for the result. Dropped without [`Output::write`], it leaves no trace.
#[derive(Debug)]
pub(crate) struct Output {
    kind: Kind,
    /// What a file of tensors calls them.
    tensor: &'static str,
    /// What the user will find.
    place: PathBuf,
    /// The hidden file or folder that is filled first.
    draft: PathBuf,
    /// Whether `place` is a folder that was made for this.
    made_folder: bool,
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Grid,
    Strip,
    Animation,
    Npz,
    Safetensors,
    Folder,
}

/// Moments of a strip.
const STRIP: usize = 9;

/// Frames of an animation, at most: x_T, x_0, and those between them evenly spread over the steps.
const FRAMES: usize = 101;

/// What is told about every image: keyword and text.
pub(crate) type Story = Vec<(&'static str, String)>;

impl Output {
    /// Finds out that a result of the kind that the path asks for can be written there.
    ///
    /// # Errors
    /// A folder that is missing or not writable, a result folder with files in it.
    pub(crate) fn claim(place: &Path, kind: Kind, tensor: &'static str) -> Result<Self> {
        let mut output = if kind == Kind::Folder {
            Self::claim_folder(place)?
        } else {
            Self::claim_file(place, kind)?
        };
        output.tensor = tensor;
        Ok(output)
    }

    /// The film that the walk is to be shown to, where the result is made of its moments.
    pub(crate) fn film(&self, steps: usize) -> Option<Film> {
        let moments = match self.kind {
            Kind::Strip => STRIP,
            Kind::Animation => FRAMES,
            _ => return None,
        };
        Some(Film::new(steps, moments))
    }

    /// Writes all images, or their film where there is one; what fails leaves nothing behind.
    ///
    /// # Shapes
    /// samples: `[N, C, H, W]` f32, x_0 as computed.
    pub(crate) fn write(
        self,
        samples: &Tensor,
        film: Option<&Film>,
        map: &PixelMap,
        (story, labels): (&Story, Option<&Labels>),
    ) -> Result<PathBuf> {
        let what = || format!("cannot write the images to {}", self.place.display());
        if let Some(film) = film {
            let bytes = match self.kind {
                Kind::Strip => encode_png(&film.strip(usize::MAX, STRIP)?, story)?,
                _ => {
                    let frames = film.frames(usize::MAX)?;
                    encode_gif(&frames, Timing::of(frames.len()), story)?
                }
            };
            fs::write(&self.draft, bytes).with_context(what)?;
            self.publish().with_context(what)?;
            return Ok(self.place.clone());
        }
        match self.kind {
            Kind::Grid | Kind::Strip | Kind::Animation => {
                let pictures = Picture::from_tensor(samples, map)?;
                let picture = match labels.and_then(|labels| labels.columns) {
                    Some(columns) => sheet_with_columns(&pictures, columns)?,
                    None => sheet(&pictures)?,
                };
                fs::write(&self.draft, encode_png(&picture, story)?).with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Npz => {
                write_arrays(&self.draft, samples, map, labels).with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Safetensors => {
                let metadata: BTreeMap<String, String> = story
                    .iter()
                    .map(|(key, text)| ((*key).to_owned(), text.clone()))
                    .collect();
                let mut tensors = vec![(self.tensor.to_owned(), samples.clone())];
                if let Some(numbers) = labels.and_then(Labels::numbers) {
                    let count = numbers.len();
                    let classes = Tensor::from_vec(numbers, count, &Device::Cpu)?;
                    tensors.push(("classes".to_owned(), classes));
                }
                ddpm_checkpoint::write_tensors(&self.draft, "the images", &tensors, &metadata)
                    .with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Folder => self
                .write_folder(samples, map, (story, labels))
                .with_context(what)?,
        }
        Ok(self.place.clone())
    }

    fn claim_file(place: &Path, kind: Kind) -> Result<Self> {
        let parent = parent_of(place);
        ensure!(
            parent.is_dir(),
            "cannot write {}: there is no folder {}",
            place.display(),
            parent.display()
        );
        ensure!(
            !place.is_dir(),
            "cannot write {}: it is a folder",
            place.display()
        );
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let draft = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        File::create(&draft).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(Self {
            kind,
            tensor: "samples",
            place: place.to_owned(),
            draft,
            made_folder: false,
        })
    }

    fn claim_folder(place: &Path) -> Result<Self> {
        let what = || format!("cannot write into {}", place.display());
        // Without the slash at its end.
        let bare: PathBuf = place.components().collect();
        ensure!(
            !bare.is_file(),
            "cannot write into {}: it is a file",
            place.display()
        );
        let made_folder = !place.exists();
        if made_folder {
            let parent = parent_of(place);
            ensure!(
                parent.is_dir(),
                "cannot make {}: there is no folder {}",
                place.display(),
                parent.display()
            );
            fs::create_dir(place).with_context(what)?;
        } else if let Some(entry) = fs::read_dir(place).with_context(what)?.next() {
            let entry = entry.with_context(what)?.file_name();
            bail!(
                "{} already holds files ({}); name a new or empty folder",
                place.display(),
                entry.display()
            );
        }
        let draft = place.join(format!(".{}.tmp", std::process::id()));
        let output = Self {
            kind: Kind::Folder,
            tensor: "samples",
            place: place.to_owned(),
            draft,
            made_folder,
        };
        fs::create_dir(&output.draft).with_context(what)?;
        Ok(output)
    }

    /// 000000.png on, each with its own number in the story: all into the hidden folder, then moved up.
    fn write_folder(
        &self,
        samples: &Tensor,
        map: &PixelMap,
        (story, labels): (&Story, Option<&Labels>),
    ) -> Result<()> {
        let pictures = Picture::from_tensor(samples, map)?;
        let classes = labels.and_then(Labels::numbers).unwrap_or_default();
        let name = |index: usize| format!("{index:06}.png");
        for (index, picture) in pictures.iter().enumerate() {
            let mut story = story.clone();
            story.push(("image", index.to_string()));
            if let Some(class) = classes.get(index) {
                story.retain(|(key, _)| *key != "class");
                story.push(("class", class.to_string()));
            }
            write_png(self.draft.join(name(index)), picture, &story)?;
        }
        for index in 0..pictures.len() {
            fs::rename(self.draft.join(name(index)), self.place.join(name(index)))?;
        }
        fs::remove_dir(&self.draft)?;
        Ok(())
    }

    fn publish(&self) -> std::io::Result<()> {
        File::open(&self.draft)?.sync_all()?;
        fs::rename(&self.draft, &self.place)
    }
}

impl Drop for Output {
    /// Removes what is left of the draft; after a successful write there is nothing left.
    fn drop(&mut self) {
        if self.kind == Kind::Folder {
            drop(fs::remove_dir_all(&self.draft));
            if self.made_folder {
                // Fails, as it should, once the folder holds images.
                drop(fs::remove_dir(&self.place));
            }
        } else {
            drop(fs::remove_file(&self.draft));
        }
    }
}

impl Kind {
    /// By the ending of the path; a folder may go without its slash if it is there. `None` for any other ending.
    pub(crate) fn of(place: &Path) -> Option<Self> {
        if place.is_dir() || place.to_string_lossy().ends_with(std::path::is_separator) {
            return Some(Kind::Folder);
        }
        let ending = place.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "png" => Some(Kind::Grid),
            "gif" => Some(Kind::Animation),
            "npz" => Some(Kind::Npz),
            "safetensors" => Some(Kind::Safetensors),
            _ => None,
        }
    }
}

/// `arr_0` the images, `arr_1` their classes.
fn write_arrays(
    path: &Path,
    samples: &Tensor,
    map: &PixelMap,
    labels: Option<&Labels>,
) -> Result<()> {
    let (n, c, h, w) = samples.dims4()?;
    let (shape, bytes) = ([n, h, w, c], map.to_u8(samples)?);
    let mut arrays = vec![Array {
        name: "arr_0",
        kind: "|u1",
        shape: &shape,
        bytes: &bytes,
    }];
    let classes = labels.and_then(Labels::numbers);
    let classes: Option<Vec<u8>> =
        classes.map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect());
    if let Some(bytes) = &classes {
        arrays.push(Array {
            name: "arr_1",
            kind: "<i8",
            shape: &shape[..1],
            bytes,
        });
    }
    Ok(write_npz(path, &arrays)?)
}

fn parent_of(place: &Path) -> &Path {
    place
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
