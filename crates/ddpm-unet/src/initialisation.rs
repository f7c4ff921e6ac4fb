//! First values of the parameters: a function of the seed and of each parameter's name and of nothing else, or
//! PyTorch's own, drawn one after the other from its generator.

use candle_core::{Device, Tensor};
use ddpm_random::{Stream, TorchGenerator};

use crate::architecture::{Architecture, Parameter, Role};
use crate::{Result, UNetConfig};

/// How the parameters are drawn. Normalisations start as the identity in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialisation {
    /// Ho et al.: weights uniform in ±√(3 s / n), n the mean of inputs and outputs, s = 1, or 1e-10 for the last
    /// weight before a residual sum or the output; biases 0.
    Ho,
    /// PyTorch's defaults: weights and biases uniform in ±1/√inputs.
    PyTorch,
    /// PyTorch's numbers, bit for bit: those of `torch.manual_seed(seed); UNet2DModel(...)`. See
    /// [`initialise_as_torch`].
    Torch,
}

/// Draws all parameters of a network, in construction order.
///
/// The numbers come from the stream `Initialisation`, each tensor at an address made of its name: they depend neither
/// on the order of drawing nor on threads, and a parameter that two networks share starts the same in both. Those of
/// [`Initialisation::Torch`] come from PyTorch's generator in the order of construction instead.
///
/// Tables of times and classes are standard normal, Fourier's frequencies normal with deviation 16, in all.
///
/// # Errors
/// A device that cannot hold them.
pub fn initialise(
    config: &UNetConfig,
    initialisation: Initialisation,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    if initialisation == Initialisation::Torch {
        return initialise_as_torch(config, &mut TorchGenerator::new(seed), device);
    }
    let draw = |parameter: Parameter| {
        let values = first_values(&parameter, initialisation, seed)?;
        Ok((
            parameter.name,
            Tensor::from_vec(values, parameter.shape, device)?,
        ))
    };
    Architecture::new(config.settings())
        .parameters
        .into_iter()
        .map(draw)
        .collect()
}

/// Draws all parameters as PyTorch's constructor of `UNet2DModel` does from its generator, which stands afterwards where
/// PyTorch's would: the same bits as those of PyTorch on x86-64.
///
/// # Errors
/// A device that cannot hold them.
pub fn initialise_as_torch(
    config: &UNetConfig,
    generator: &mut TorchGenerator,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let parameters = Architecture::new(config.settings()).parameters;
    drawn_as_torch(parameters, generator, device)
}

/// Parameters in the order of their construction.
pub(crate) fn drawn_as_torch(
    parameters: Vec<Parameter>,
    generator: &mut TorchGenerator,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let draw = |parameter: Parameter| {
        let values = torchs_values(&parameter, generator);
        let tensor = Tensor::from_vec(values, parameter.shape, device)?;
        Ok((parameter.name, tensor))
    };
    parameters.into_iter().map(draw).collect()
}

fn torchs_values(parameter: &Parameter, generator: &mut TorchGenerator) -> Vec<f32> {
    let mut values = vec![0f32; parameter.shape.iter().product()];
    let bound = match parameter.role {
        Role::NormScale => {
            values.fill(1.0);
            return values;
        }
        Role::NormShift => return values,
        Role::Table => {
            generator.normal_into(&mut values);
            return values;
        }
        Role::Frequencies => {
            // Drawn twice, of which the second counts.
            generator.normal_into(&mut values);
            generator.normal_into(&mut values);
            values.iter_mut().for_each(|v| *v *= FREQUENCIES);
            return values;
        }
        Role::Weight | Role::LastWeight => {
            let inputs: usize = parameter.shape[1..].iter().product();
            kaiming_bound(inputs)
        }
        Role::Bias { fan_in } => inputs_bound(fan_in),
    };
    // Uniform in [-b, b) of f32 bounds, between them in f64, as PyTorch.
    let (low, high) = (-bound as f32, bound as f32);
    let width = f64::from(high - low);
    generator.uniform_into(&mut values);
    for value in &mut values {
        *value = (f64::from(*value) * width + f64::from(low)) as f32;
    }
    values
}

/// `kaiming_uniform_(a=sqrt(5))`, step by step in f64: nearly 1 / √inputs, and as PyTorch to the last bit.
fn kaiming_bound(inputs: usize) -> f64 {
    let slope = 5f64.sqrt();
    let gain = (2.0 / (1.0 + slope.powi(2))).sqrt();
    3f64.sqrt() * (gain / (inputs as f64).sqrt())
}

fn first_values(
    parameter: &Parameter,
    initialisation: Initialisation,
    seed: u64,
) -> Result<Vec<f32>> {
    let count = parameter.shape.iter().product();
    let bound = match (parameter.role, initialisation) {
        (Role::NormScale, _) => return Ok(vec![1.0; count]),
        (Role::NormShift, _) | (Role::Bias { .. }, Initialisation::Ho) => {
            return Ok(vec![0.0; count]);
        }
        (Role::Table, _) => return normal_values(parameter, 1.0, seed),
        (Role::Frequencies, _) => return normal_values(parameter, FREQUENCIES, seed),
        (Role::Weight, Initialisation::Ho) => variance_scaling_bound(&parameter.shape, 1.0),
        (Role::LastWeight, Initialisation::Ho) => variance_scaling_bound(&parameter.shape, 1e-10),
        (Role::Weight | Role::LastWeight, _) => inputs_bound(parameter.shape[1..].iter().product()),
        (Role::Bias { fan_in }, _) => inputs_bound(fan_in),
    };
    let mut values = vec![0f32; count];
    ddpm_random::uniform_into(
        seed,
        Stream::Initialisation,
        address(&parameter.name),
        0,
        &mut values,
    )?;
    for value in &mut values {
        *value = ((2.0 * f64::from(*value) - 1.0) * bound) as f32;
    }
    Ok(values)
}

/// The deviation of the frequencies of Fourier's time embedding.
const FREQUENCIES: f32 = 16.0;

fn normal_values(parameter: &Parameter, deviation: f32, seed: u64) -> Result<Vec<f32>> {
    let mut values = vec![0f32; parameter.shape.iter().product()];
    let address = address(&parameter.name);
    ddpm_random::normal_into(seed, Stream::Initialisation, address, 0, &mut values)?;
    values.iter_mut().for_each(|v| *v *= deviation);
    Ok(values)
}

/// Half the width of the uniform distribution of variance s / n, n = (inputs + outputs) / 2 (`fan_avg`): √(3 s / n).
fn variance_scaling_bound(shape: &[usize], scale: f64) -> f64 {
    let pixels: usize = shape[2..].iter().product();
    let mean = ((shape[0] + shape[1]) * pixels) as f64 / 2.0;
    (3.0 * scale / mean).sqrt()
}

/// 1 / √inputs, which PyTorch writes as He's initialisation of a leaky unit of slope √5.
fn inputs_bound(inputs: usize) -> f64 {
    1.0 / (inputs as f64).sqrt()
}

/// A number of 44 bits for a name, as many as an address has: FNV-1a of its bytes, the upper bits folded over.
fn address(name: &str) -> u64 {
    let hash = fnv_1a(name);
    (hash ^ (hash >> 44)) & ((1 << 44) - 1)
}

fn fnv_1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test vectors of FNV-1a, 64 bits.
    #[test]
    fn names_are_hashed_by_fnv_1a() {
        assert_eq!(fnv_1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn no_two_tensors_of_the_largest_networks_share_an_address() {
        for config in [UNetConfig::ddpm_cifar10(), UNetConfig::ddpm_256()] {
            let names = config.parameters();
            let addresses: std::collections::HashSet<u64> =
                names.iter().map(|(name, _)| address(name)).collect();
            assert_eq!(addresses.len(), names.len());
        }
    }
}
