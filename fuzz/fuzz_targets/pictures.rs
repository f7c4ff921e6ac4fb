//! Pictures of every format: decoded, resized and cropped in one of a few ways, which the first byte chooses.
#![no_main]

use ddpm_data::{Color, Crop, Pictures};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let crop = [Crop::Centre, Crop::Stretch, Crop::Random][usize::from(how % 3)];
    let size = (how & 0x40 == 0).then_some((8, 12));
    let pictures = Pictures {
        size,
        crop: if size.is_some() { crop } else { Crop::Centre },
        color: if how & 0x80 == 0 {
            Color::Rgb
        } else {
            Color::Grey
        },
        ..Pictures::default()
    };
    if let Ok(image) = pictures.image(bytes) {
        if size.is_some() && crop != Crop::Random {
            assert_eq!((image.height(), image.width()), (8, 12));
        }
        assert_eq!(image.channels(), pictures.color.channels());
    }
});
