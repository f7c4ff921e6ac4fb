//! Tensors on their way to a card: through page-locked memory, so that nobody waits for the copy.

use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
mod pinned;
#[cfg(any(test, feature = "cuda"))]
mod ring;

/// The same numbers on a device, outside of candle's graph if they go to a card.
///
/// A copy from ordinary memory to a card waits until the card has done all that it was told before. Here the numbers are put
/// aside, in memory that the card reads by itself, and the copy is done in its turn. Where there is no such memory, what is large
/// (from 256 MiB) and what goes elsewhere is copied as [`Tensor::to_device`] does it.
///
/// # Errors
/// The device has no room.
pub fn upload(x: &Tensor, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(uploaded) = pinned::upload(x, device) {
        return Ok(uploaded);
    }
    x.to_device(device)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn on_the_processor_it_is_the_tensor_itself() {
        let x = Tensor::arange(0u32, 6, &Device::Cpu).unwrap();
        let x = x.reshape((2, 3)).unwrap().t().unwrap();
        let there = upload(&x, &Device::Cpu).unwrap();
        assert_eq!(
            (there.dtype(), there.dims()),
            (DType::U32, [3, 2].as_slice())
        );
        assert_eq!(
            there.to_vec2::<u32>().unwrap(),
            [[0, 3], [1, 4], [2, 5]].map(|row| row.to_vec())
        );
    }
}
