//! Where the images go: the place is claimed before sampling starts and filled whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use ddpm_image::{Film, Picture, PixelMap, Timing, encode_gif, encode_png, sheet, write_png};

use crate::npz::write_npz;

/// A claimed place for the result. Dropped without [`Output::write`], it leaves no trace.
#[derive(Debug)]
pub(crate) struct Output {
    kind: Kind,
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
    pub(crate) fn claim(place: &Path, kind: Kind) -> Result<Self> {
        if kind == Kind::Folder {
            Self::claim_folder(place)
        } else {
            Self::claim_file(place, kind)
        }
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
        story: &Story,
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
                let picture = sheet(&Picture::from_tensor(samples, map)?)?;
                fs::write(&self.draft, encode_png(&picture, story)?).with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Npz => {
                let (n, c, h, w) = samples.dims4()?;
                write_npz(&self.draft, "arr_0", &[n, h, w, c], &map.to_u8(samples)?)
                    .with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Safetensors => {
                let metadata: BTreeMap<String, String> = story
                    .iter()
                    .map(|(key, text)| ((*key).to_owned(), text.clone()))
                    .collect();
                let tensors = [("samples".to_owned(), samples.clone())];
                ddpm_checkpoint::write_tensors(&self.draft, "the images", &tensors, &metadata)
                    .with_context(what)?;
                self.publish().with_context(what)?;
            }
            Kind::Folder => self.write_folder(samples, map, story).with_context(what)?,
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
            place: place.to_owned(),
            draft,
            made_folder,
        };
        fs::create_dir(&output.draft).with_context(what)?;
        Ok(output)
    }

    /// 000000.png on, each with its own number in the story: all into the hidden folder, then moved up.
    fn write_folder(&self, samples: &Tensor, map: &PixelMap, story: &Story) -> Result<()> {
        let pictures = Picture::from_tensor(samples, map)?;
        let name = |index: usize| format!("{index:06}.png");
        for (index, picture) in pictures.iter().enumerate() {
            let mut story = story.clone();
            story.push(("image", index.to_string()));
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

fn parent_of(place: &Path) -> &Path {
    place
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
