//! A data set: u8 images in memory or in a mapped file, their labels, their SHA-256.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use ddpm_image::PixelMap;
use sha2::{Digest, Sha256};

use crate::store::Store;
use crate::{Error, Result, Skipped};

/// The parts of a data set.
#[derive(Debug, Clone)]
pub struct Splits {
    /// Where it was found: a folder, or words that say that it is inside the program.
    pub origin: String,
    /// What training sees.
    pub train: Dataset,
    /// What the held-out loss is measured on, where the source has such a part.
    pub test: Option<Dataset>,
    /// The pictures left out because they could not be read; empty unless that was allowed.
    pub skipped: Vec<Skipped>,
}

/// Images of one size, u8, each height x width x channels; and a label for each, or none at all.
///
/// Images that are cropped at random are kept larger, each in its own size, and [`Dataset::image`] is the middle of one.
/// A clone shares the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    name: String,
    store: Arc<Store>,
    size: (usize, usize, usize),
    /// Where each image lies in the store, where they differ in size; else they follow one another.
    places: Option<Arc<Vec<Place>>>,
    labels: Option<Arc<Vec<u32>>>,
    class_names: Vec<String>,
}

/// Where one image lies that is kept larger than it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: u64,
    pub(crate) height: u32,
    pub(crate) width: u32,
}

impl Dataset {
    /// Checks that `pixels` are whole images of `size` = (height, width, channels), that there is at least one, that
    /// there is a label for each (if any), and that each label has a class name (if there are names).
    ///
    /// # Errors
    /// [`Error::Shape`] with both numbers.
    pub fn new(
        name: &str,
        pixels: Vec<u8>,
        size: (usize, usize, usize),
        labels: Option<Vec<u32>>,
        class_names: Vec<String>,
    ) -> Result<Self> {
        let wrong = |what: String| Error::Shape {
            name: name.to_owned(),
            what,
        };
        let (height, width, channels) = size;
        let image = height
            .checked_mul(width)
            .and_then(|n| n.checked_mul(channels))
            .unwrap_or(0);
        if image == 0 || pixels.is_empty() || !pixels.len().is_multiple_of(image) {
            let bytes = pixels.len();
            return Err(wrong(format!(
                "{bytes} bytes of pixels, expected one or more whole images of {height}x{width}x{channels}"
            )));
        }
        let n = pixels.len() / image;
        let store = Store::Memory(pixels);
        Self::from_store(name, (store, None), size, n, labels, class_names)
    }

    /// `n` images of this size in a store, or larger ones at these places, which lie in it.
    pub(crate) fn from_store(
        name: &str,
        (store, places): (Store, Option<Vec<Place>>),
        size: (usize, usize, usize),
        n: usize,
        labels: Option<Vec<u32>>,
        class_names: Vec<String>,
    ) -> Result<Self> {
        let wrong = |what: String| Error::Shape {
            name: name.to_owned(),
            what,
        };
        if let Some(labels) = &labels {
            if labels.len() != n {
                return Err(wrong(format!(
                    "{n} images but {} labels, expected as many",
                    labels.len()
                )));
            }
            let classes = class_names.len();
            if let Some(i) = labels
                .iter()
                .position(|&label| classes > 0 && label as usize >= classes)
            {
                return Err(wrong(format!(
                    "label {} of image {i}, expected less than {classes}",
                    labels[i]
                )));
            }
        }
        Ok(Self {
            name: name.to_owned(),
            store: Arc::new(store),
            size,
            places: places.map(Arc::new),
            labels: labels.map(Arc::new),
            class_names,
        })
    }

    /// What the data set is called, with its part: `digits train`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many images there are; at least 1.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a data set without images cannot be made"
    )]
    pub fn len(&self) -> usize {
        match &self.places {
            Some(places) => places.len(),
            None => self.store.len() / self.image_len(),
        }
    }

    /// Rows of an image.
    pub fn height(&self) -> usize {
        self.size.0
    }

    /// Columns of an image.
    pub fn width(&self) -> usize {
        self.size.1
    }

    /// Values of a pixel: 1 for grey, 3 for red, green, blue.
    pub fn channels(&self) -> usize {
        self.size.2
    }

    /// Whether the images lie in a file of the cache that is mapped, rather than in memory.
    pub fn is_streamed(&self) -> bool {
        matches!(*self.store, Store::Mapped(_))
    }

    /// Image `index`, height x width x channels; of one that is kept larger, the middle.
    ///
    /// # Panics
    /// As a slice does, when `index` is not less than [`len`](Self::len).
    pub fn image(&self, index: usize) -> Cow<'_, [u8]> {
        if self.places.is_none() {
            let start = index * self.image_len();
            return Cow::Borrowed(&self.store[start..start + self.image_len()]);
        }
        let (rows, columns) = self.room(index);
        let mut image = Vec::with_capacity(self.image_len());
        self.window_into(index, (rows / 2, columns / 2), &mut image);
        Cow::Owned(image)
    }

    /// How many rows and columns image `index` is kept larger than it is shown.
    pub fn room(&self, index: usize) -> (usize, usize) {
        let place = self.place(index);
        let (height, width) = (place.height as usize, place.width as usize);
        (height - self.size.0, width - self.size.1)
    }

    /// Appends what is seen of image `index` from this row and column, which are at most its [`room`](Self::room).
    pub(crate) fn window_into(&self, index: usize, corner: (usize, usize), out: &mut Vec<u8>) {
        let place = self.place(index);
        let (height, width, channels) = self.size;
        let (start, row) = (place.start as usize, place.width as usize * channels);
        for y in corner.0..corner.0 + height {
            let left = start + y * row + corner.1 * channels;
            out.extend_from_slice(&self.store[left..left + width * channels]);
        }
    }

    fn place(&self, index: usize) -> Place {
        match &self.places {
            Some(places) => places[index],
            None => Place {
                start: (index * self.image_len()) as u64,
                height: self.size.0 as u32,
                width: self.size.1 as u32,
            },
        }
    }

    /// The class of each image, where the source knows it.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_ref().map(|labels| labels.as_slice())
    }

    /// What the classes are called, class 0 first; empty when the source gives no names.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The images of these numbers, in this order, as f32 `[indices, channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Index`] for a number beyond the data set; what the pixel map refuses.
    pub fn tensor(&self, indices: &[usize], map: &PixelMap, device: &Device) -> Result<Tensor> {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        for &index in indices {
            self.check(index)?;
            pixels.extend_from_slice(&self.image(index));
        }
        self.to_tensor(&pixels, indices.len(), map, device)
    }

    /// SHA-256 of the content in lower-case hexadecimal: two data sets have the same one when their images, in order,
    /// and their labels are the same, wherever they were found and however they were packed.
    ///
    /// Hashed: count, height, width, channels, each as u64 little-endian; the pixels; then a byte 1 and each label as u32
    /// little-endian, or a byte 0 where there are no labels; then, of images that are kept larger than they are shown,
    /// the height and width of each as u32 little-endian. Names are left out.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for number in [self.len(), self.size.0, self.size.1, self.size.2] {
            hash.update((number as u64).to_le_bytes());
        }
        hash.update(&**self.store);
        hash.update([u8::from(self.labels.is_some())]);
        for label in self.labels().into_iter().flatten() {
            hash.update(label.to_le_bytes());
        }
        for place in self.places.iter().flat_map(|places| places.iter()) {
            hash.update(place.height.to_le_bytes());
            hash.update(place.width.to_le_bytes());
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Bytes of one image.
    pub(crate) fn image_len(&self) -> usize {
        self.size.0 * self.size.1 * self.size.2
    }

    /// That there is an image of this number.
    fn check(&self, index: usize) -> Result<()> {
        let len = self.len();
        if index < len {
            Ok(())
        } else {
            Err(Error::Index {
                name: self.name.clone(),
                index,
                len,
            })
        }
    }

    /// `n` images of this data set's size, wherever they were put together, through the pixel map.
    pub(crate) fn to_tensor(
        &self,
        pixels: &[u8],
        n: usize,
        map: &PixelMap,
        device: &Device,
    ) -> Result<Tensor> {
        Ok(map.to_tensor(pixels, n, self.size, device)?)
    }
}
