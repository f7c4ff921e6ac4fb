//! Files made to do harm: whatever they ask for, an error that says so, in little memory and time.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ddpm_checkpoint::{Arch, ForeignFile, Pipeline, Weights, open_tensors};

use crate::layouts::golden;
use crate::message;

/// A zip archive that is not compressed, of these files, as torch.save writes it: by hand, so that it can lie.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let place = bytes.len() as u32;
        let size = content.len() as u32;
        let mut fields = vec![0u8; 10];
        fields[0] = 20;
        let checksum = flate2::Crc::new().tap(content);
        for number in [checksum, size, size] {
            fields.extend(number.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        bytes.extend(*b"PK\x03\x04");
        bytes.extend(&fields);
        bytes.extend(name.as_bytes());
        bytes.extend(*content);
        directory.extend(*b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend(place.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (place, size) = (bytes.len() as u32, directory.len() as u32);
    let count = (files.len() as u16).to_le_bytes();
    bytes.extend(directory);
    bytes.extend(*b"PK\x05\x06\0\0\0\0");
    bytes.extend(count);
    bytes.extend(count);
    bytes.extend(size.to_le_bytes());
    bytes.extend(place.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

trait Checksum {
    fn tap(self, content: &[u8]) -> u32;
}

impl Checksum for flate2::Crc {
    fn tap(mut self, content: &[u8]) -> u32 {
        self.update(content);
        self.sum()
    }
}

/// Pickles put together from instructions.
struct Program(Vec<u8>);

impl Program {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn code(mut self, code: &[u8]) -> Self {
        self.0.extend(code);
        self
    }

    fn text(self, text: &str) -> Self {
        let length = (text.len() as u32).to_le_bytes();
        self.code(b"X").code(&length).code(text.as_bytes())
    }

    fn int(self, number: i32) -> Self {
        self.code(b"J").code(&number.to_le_bytes())
    }

    /// A tensor of f32 in storage 0 of so many numbers, with this offset, these sizes and strides.
    fn tensor(self, length: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Self {
        let start = self
            .code(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage");
        let start = start.code(b"ctorch\nFloatStorage\n").text("0").text("cpu");
        let start = start.int(length).code(b"tQ").int(offset).code(b"(");
        let sizes = shape.iter().fold(start, |made, &n| made.int(n)).code(b"t(");
        let strides = strides.iter().fold(sizes, |made, &n| made.int(n));
        strides.code(b"t\x89ccollections\nOrderedDict\n)RtR")
    }

    fn end(self) -> Vec<u8> {
        self.code(b".").0
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, content: &[u8]) -> PathBuf {
        let path = self.0.path().join("file.pt");
        fs::write(&path, content).unwrap();
        path
    }
}

/// Reads everything that a file promises; the first error.
#[allow(clippy::result_large_err, reason = "it is the library's")]
fn read_all(path: &Path) -> ddpm_checkpoint::Result<()> {
    let mut tensors = open_tensors(path)?;
    for name in tensors.names() {
        tensors.read_f32(&name)?;
    }
    Ok(())
}

#[track_caller]
fn check_bytes(content: &[u8], part: &str) {
    let place = Place::new();
    let path = place.write(content);
    let started = Instant::now();
    let text = message(read_all(&path), place.0.path());
    assert!(text.starts_with("FOLDER/file.pt"), "{text}");
    assert!(text.contains(part), "{text}\ndoes not say: {part}");
    assert!(
        started.elapsed().as_secs() < 20,
        "it took {:?}",
        started.elapsed()
    );
    // Nor does any other door open to it.
    if let Ok(mut file) = ForeignFile::open(&path) {
        let converted = file.convert(&Arch::default(), &Weights::Ema);
        assert!(converted.is_err());
    }
}

/// As the pickle of an archive with one storage of 16 bytes.
#[track_caller]
fn check(pickle: &[u8], part: &str) {
    check_bytes(
        &archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 16])]),
        part,
    );
}

#[test]
fn an_honest_file_made_by_hand_is_read() {
    let pickle = Program::new()
        .code(b"}")
        .text("w")
        .tensor(4, 0, &[2, 2], &[2, 1])
        .code(b"s")
        .end();
    let place = Place::new();
    let path = place.write(&archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]));
    read_all(&path).unwrap();
}

#[test]
fn a_pickle_that_calls_something_is_told_what_it_asked_for() {
    let call = Program::new()
        .code(b"cposix\nsystem\n")
        .text("touch made-by-a-pickle")
        .code(b"\x85R");
    check(
        &call.end(),
        "it asks for `posix.system`, which is not among the tensors and containers that are read; nothing was run",
    );
    assert!(!Path::new("made-by-a-pickle").exists());
    let by_stack = Program::new()
        .text("builtins")
        .text("eval")
        .code(b"\x93")
        .text("1")
        .code(b"\x85R");
    check(&by_stack.end(), "`builtins.eval`");
    let new = Program::new().code(b"csubprocess\nPopen\n)\x81");
    check(&new.end(), "`subprocess.Popen`");
    check(
        &Program::new().code(b"(ios\nsystem\n").end(),
        "instruction 0x69",
    );
    check(
        &Program::new().code(b"}}b").code(b"N}b").end(),
        "sets the attributes of what is no dict",
    );
    check(
        &Program::new().text("x").code(b"Q").end(),
        "a persistent id is not that of a storage",
    );
    // What it may name it may not call in any way.
    check(
        &Program::new().code(b"ctorch\nFloatStorage\n)R").end(),
        "are not as PyTorch writes them",
    );
    check(
        &Program::new()
            .code(b"ctorch._utils\n_rebuild_tensor_v2\n)R")
            .end(),
        "a tensor is not written as",
    );
    let nested =
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR";
    check(
        &Program::new().code(nested).end(),
        "are not as PyTorch writes them",
    );
    // Outside an archive, as EDM's.
    check_bytes(
        &Program::new()
            .code(b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n")
            .end(),
        "`torch_utils.persistence._reconstruct",
    );
}

#[test]
fn broken_stacks_are_errors() {
    for (code, part) in [
        (&b"."[..], "takes a value where there is none"),
        (b"R.", "takes a value where there is none"),
        (b"(.", "takes a value where there is none"),
        (b"N(0.", "takes a value where there is none"),
        (b"t.", "ends a list that never began"),
        (b"h\x05.", "recalls value 5, which it never kept"),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "sets keys of what is no dict"),
        (b"}(Nu.", "a key without a value"),
        (b"\xff", "instruction 0xff"),
        (b"X\xff\xff\xff\xff", "it is cut short"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "it is cut short"),
        (b"\x8b\xff\xff\xff\x7f", "it is cut short"),
        (b"cposix", "cut short in a name"),
        (b"N", "it is cut short"),
        (b"", "it is cut short"),
    ] {
        check(&Program::new().code(code).0, part);
    }
    check(&[0x80, 9, b'N', b'.'], "protocol 9 is not known");
    check(
        &Program::new().code(b"N").end(),
        "there are no tensors in it",
    );
}

#[test]
fn pickles_that_contain_themselves_or_are_deep_cost_nothing() {
    // A dict that is its own value, beside a tensor.
    let own = Program::new()
        .code(b"}q\x00")
        .text("self")
        .code(b"h\x00s")
        .text("w");
    let own = own.tensor(4, 0, &[3], &[9]).code(b"s").end();
    check(&own, "does not lie within its storage of 4 numbers");
    // Three million tuples in each other.
    let deep = Program::new().code(b")").code(&vec![0x85; 3_000_000]).end();
    check(&deep, "there are no tensors in it");
    // Lists that each hold the one before ten times over: 10^100 items by name, a few hundred in fact.
    let mut bomb = Program::new().code(b"]q\x00");
    for level in 0..100u8 {
        bomb = bomb.code(b"](");
        for _ in 0..10 {
            bomb = bomb.code(&[b'h', level]);
        }
        bomb = bomb.code(&[b'e', b'q', level + 1]);
    }
    check(&bomb.end(), "there are no tensors in it");
    // More instructions than any model needs.
    let long = Program::new().code(&b"N0".repeat(3_000_000)).end();
    check(&long, "it has more than 4000000 instructions");
    // A dict made of a list of pairs again and again.
    let pairs = b"]("
        .to_vec()
        .into_iter()
        .chain(b"NN\x86".repeat(100_000))
        .chain(*b"eq\x00")
        .collect::<Vec<u8>>();
    let again = b"0ccollections\nOrderedDict\nh\x00\x85R".repeat(1000);
    check(
        &Program::new().code(&pairs).code(&again).end(),
        "it copies more than",
    );
}

#[test]
fn tensors_that_are_not_there_are_not_made() {
    let one = |length, offset, shape: &[i32], strides: &[i32]| {
        let made = Program::new().code(b"}").text("w");
        made.tensor(length, offset, shape, strides).code(b"s").end()
    };
    let outside = "does not lie within its storage";
    check(&one(4, 1, &[2, 2], &[2, 1]), outside);
    check(&one(4, 0, &[5], &[1]), outside);
    // 100 GB of one number, repeated.
    check(&one(4, 0, &[25_000_000, 1000], &[0, 0]), outside);
    check(&one(4, 0, &[i32::MAX; 8], &[i32::MAX; 8]), outside);
    check(&one(4, i32::MAX, &[1], &[1]), outside);
    check(
        &one(4, 0, &[1; 9], &[1; 9]),
        "a tensor is not written as PyTorch writes it",
    );
    check(&one(4, 0, &[2, 2], &[1]), "has 2 sizes and 1 strides");
    check(
        &one(4, 0, &[-1], &[1]),
        "a tensor is not written as PyTorch writes it",
    );
    check(&one(-4, 0, &[1], &[1]), "a storage has -4 numbers");
    // A storage that claims more than its bytes.
    check(
        &one(i32::MAX, 0, &[i32::MAX], &[1]),
        "in the storage `0` of 16 bytes, expected 2147483647 numbers of 4",
    );
    check(
        &one(3, 0, &[3], &[1]),
        "in the storage `0` of 16 bytes, expected 3 numbers of 4",
    );
    let missing = archive(&[("a/data.pkl", &one(4, 0, &[4], &[1]))]);
    check_bytes(&missing, "lies in the storage `0`, which is missing");
}

#[test]
fn tensors_that_share_a_storage_do_not_add_up() {
    let mut many = Program::new().code(b"}");
    for index in 0..2000 {
        let name = format!("w{index}");
        many = many
            .text(&name)
            .tensor(250_000, 0, &[250_000], &[1])
            .code(b"s");
    }
    let content = archive(&[
        ("a/data.pkl", &many.end()),
        ("a/data/0", &vec![0; 1_000_000]),
    ]);
    check_bytes(
        &content,
        "would make the tensors twice as large as the file",
    );
}

#[test]
fn archives_that_lie_are_errors() {
    let pickle = Program::new().code(b"}").end();
    check_bytes(
        &archive(&[("data.pkl", &pickle)]),
        "there is no `NAME/data.pkl`",
    );
    check_bytes(
        &archive(&[("../../a/data.pkl", &pickle)]),
        "there is no `NAME/data.pkl`",
    );
    check_bytes(
        &archive(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]),
        "there is no `NAME/data.pkl`",
    );
    check_bytes(
        &archive(&[("a/data.pkl", &pickle), ("a/constants.pkl", b"")]),
        "a TorchScript program",
    );
    check_bytes(b"PK\x03\x04 and nothing more", "the archive does not read");
    let whole = fs::read(golden("ho.pt")).unwrap();
    for end in [5, 100, 5000, whole.len() / 2, whole.len() - 1] {
        check_bytes(&whole[..end], "the archive does not read");
    }
    // A size that runs over the end: the entry for `a/data/0` in the directory.
    let mut lie = archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]);
    let directory = lie
        .windows(4)
        .rposition(|four| four == b"PK\x01\x02")
        .unwrap();
    lie[directory + 20..directory + 28].copy_from_slice(&[0xf0; 8]);
    check_bytes(
        &lie,
        "`a/data/0` in the archive does not end within the file",
    );
    // What would unpack to more.
    let mut packed = archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]);
    let directory = packed
        .windows(4)
        .rposition(|four| four == b"PK\x01\x02")
        .unwrap();
    packed[directory + 10] = 8;
    check_bytes(&packed, "is packed; PyTorch packs nothing");
}

#[test]
fn old_files_that_lie_are_errors() {
    let whole = fs::read(golden("tensors_old.pt")).unwrap();
    for end in [2, 13, 14, 40, 200, whole.len() / 2] {
        check_bytes(&whole[..end], "");
    }
    // The first storage claims 2^56 numbers.
    let keys_end = whole.windows(2).rposition(|two| two == b"e.").unwrap() + 2;
    let mut lie = whole.clone();
    lie[keys_end + 7] = 1;
    check_bytes(&lie, "does not end within the file");
}

/// A folder whose weights are this file.
fn folder(weights: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("model");
    fs::create_dir_all(model.join("unet")).unwrap();
    fs::create_dir_all(model.join("scheduler")).unwrap();
    for name in ["unet/config.json", "scheduler/scheduler_config.json"] {
        fs::copy(golden("folder").join(name), model.join(name)).unwrap();
    }
    fs::write(
        model.join("unet/diffusion_pytorch_model.safetensors"),
        weights,
    )
    .unwrap();
    (place, model)
}

#[test]
fn safetensors_that_lie_are_errors() {
    let check = |header: &str, data: usize, part: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        let (place, model) = folder(&bytes);
        let text = message(Pipeline::load(&model), place.path());
        assert!(text.contains(part), "{text}");
    };
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"
        )
    };
    let one = |shape: &str, start, end| format!("{{{}}}", tensor("w", shape, start, end));
    let does_not_parse = "its header does not parse";
    // 100 GB in a file of a kilobyte.
    check(
        &one("[25000000000]", 0, 100_000_000_000),
        8,
        "its header describes",
    );
    check(&one("[18446744073709551615,4]", 0, 8), 8, does_not_parse);
    check(&one("[4294967296,4294967296]", 0, 8), 8, does_not_parse);
    check(&one("[2]", 8, 0), 8, does_not_parse);
    check(&one("[3]", 0, 8), 8, does_not_parse);
    check(&one("\"two\"", 0, 8), 8, does_not_parse);
    check(&one("[2]", 0, 8), 9, "its header describes");
    let overlap = format!(
        "{{{},{}}}",
        tensor("a", "[2]", 0, 8),
        tensor("b", "[2]", 4, 12)
    );
    check(&overlap, 12, does_not_parse);
    let gap = format!(
        "{{{},{}}}",
        tensor("a", "[2]", 0, 8),
        tensor("b", "[2]", 12, 20)
    );
    check(&gap, 20, does_not_parse);
    check("[]", 0, does_not_parse);
    check(&"[".repeat(100_000), 0, does_not_parse);
    check(
        &format!("{{\"w\":{}1", "{\"a\":".repeat(100_000)),
        0,
        does_not_parse,
    );
    let (place, model) = folder(&[0xff; 64]);
    let text = message(Pipeline::load(&model), place.path());
    assert!(
        text.contains("its header should have 18446744073709551615 bytes"),
        "{text}"
    );
}

#[test]
fn texts_without_an_end_are_not_swallowed() {
    let (place, model) = folder(&[]);
    for name in [
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ] {
        let path = model.join(name);
        let before = fs::read(&path).ok();
        // A hundred gigabytes of nothing, which take no place on the disk.
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"{").unwrap();
        file.set_len(100 << 30).unwrap();
        let text = message(Pipeline::load(&model), place.path());
        let expected = format!("FOLDER/model/{name}: it has more than 67108864 bytes");
        // The weights, which are empty, are looked at last.
        assert_eq!(text, expected);
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
}

/// A fixed sequence, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// Up to four places changed, cut out, put in, or the end cut off.
fn damaged(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=dice.below(4) {
        let place = dice.below(bytes.len());
        match dice.below(9) {
            _ if bytes.is_empty() => bytes.push(b'.'),
            0 => bytes.truncate(place),
            1 => bytes.insert(place, dice.below(256) as u8),
            2 => drop(bytes.remove(place)),
            3 => bytes[place] = [0, 1, 127, 128, 255][dice.below(5)],
            4 => bytes[place] ^= 1 << dice.below(8),
            5 => bytes[place] = b"cR.hqbQt(eus}]"[dice.below(14)],
            _ => bytes[place] = dice.below(256) as u8,
        }
    }
    bytes
}

/// How many damages of a file are tried; `DDPM_MUTATIONS=100000` makes it longer.
fn rounds() -> usize {
    let said = std::env::var("DDPM_MUTATIONS").ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(300)
}

#[test]
fn no_damage_to_a_file_makes_it_panic() {
    let place = Place::new();
    let mut dice = Dice(23);
    let mut errors = 0;
    for name in [
        "tensors.pt",
        "tensors_old.pt",
        "tensors_4.pt",
        "k_diffusion.pt",
    ] {
        let whole = fs::read(golden(name)).unwrap();
        for _ in 0..rounds() {
            let path = place.write(&damaged(&whole, &mut dice));
            errors += usize::from(read_all(&path).is_err());
            drop(
                ForeignFile::open(&path)
                    .map(|mut file| file.convert(&Arch::default(), &Weights::Raw).is_ok()),
            );
        }
    }
    assert!(errors > rounds(), "only {errors} damages were noticed");
}

#[test]
fn no_damage_to_a_pickle_makes_it_panic() {
    let place = Place::new();
    let mut dice = Dice(29);
    let said = [
        "image_size=8x12",
        "diffusion_steps=1000",
        "noise_schedule=linear",
        "num_groups=2",
    ];
    let arch = Arch::new(said).unwrap();
    let heads = ["num_heads=2", "use_new_attention_order=false"];
    let guided = Arch::new(said.iter().chain(&heads)).unwrap();
    let lucidrains = Arch::new(["image_size=4x8"]).unwrap();
    let old = [
        "image_size=4x6",
        "resnet_block_groups=2",
        "timesteps=30",
        "beta_schedule=cosine",
        "objective=pred_noise",
        "version=1.5.4",
    ];
    let old = Arch::new(old).unwrap();
    // The pickle alone is damaged: the archive around it stays whole.
    for (name, arch) in [
        ("ho.pt", &arch),
        ("guided.pt", &guided),
        ("lucidrains_self.pt", &lucidrains),
        ("lucidrains_pixels.pt", &old),
    ] {
        let whole = fs::read(golden(name)).unwrap();
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&whole)).unwrap();
        let mut parts = Vec::new();
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            parts.push((entry.name().unwrap().into_owned(), content));
        }
        let pickle = parts
            .iter()
            .position(|(name, _)| name.ends_with("data.pkl"))
            .unwrap();
        let honest = parts[pickle].1.clone();
        for _ in 0..rounds() / 3 {
            parts[pickle].1 = damaged(&honest, &mut dice);
            let files: Vec<(&str, &[u8])> = parts
                .iter()
                .map(|(n, c)| (n.as_str(), c.as_slice()))
                .collect();
            let path = place.write(&archive(&files));
            drop(
                ForeignFile::open(&path).map(|mut file| file.convert(arch, &Weights::Ema).is_ok()),
            );
        }
    }
}

#[test]
fn no_damage_to_an_index_makes_it_panic() {
    let place = tempfile::tempdir().unwrap();
    let unet = place.path().join("unet");
    fs::create_dir_all(&unet).unwrap();
    for entry in fs::read_dir(golden("folder/unet")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.contains("parts") {
            fs::copy(&path, unet.join(name)).unwrap();
        }
    }
    let index = unet.join("diffusion_pytorch_model.safetensors.index.parts.json");
    let whole = fs::read(&index).unwrap();
    let mut dice = Dice(31);
    for _ in 0..rounds() {
        fs::write(&index, damaged(&whole, &mut dice)).unwrap();
        drop(open_tensors(&index).map(|mut tensors| tensors.read_f32("conv_in.bias").is_ok()));
    }
}
