// Packs files into one ustar archive (POSIX.1-1988) for the download of a checkpoint. The files are not read: the archive is a
// Blob of headers, the files and padding.

const BLOCK = 512;
const NAME_BYTES = 100;
const LARGEST_OCTAL = 8 ** 11; // eleven octal digits and a NUL

/** Returns a Blob of type application/x-tar. `files`: [{name, file}], where `file` is a File or Blob. Throws if a name is too long. */
export function tarBlob(folder, files) {
  const parts = [];
  for (const { name, file } of files) {
    parts.push(header(`${folder}/${name}`, file.size, (file.lastModified ?? Date.now()) / 1000), file);
    const padding = (BLOCK - (file.size % BLOCK)) % BLOCK;
    if (padding) parts.push(new Uint8Array(padding));
  }
  parts.push(new Uint8Array(2 * BLOCK));
  return new Blob(parts, { type: 'application/x-tar' });
}

/** Returns the 512-byte header of a regular file. `size` in bytes, `modified` in seconds since 1970. Throws if the name is too long. */
export function header(name, size, modified) {
  const encoder = new TextEncoder();
  const encoded = encoder.encode(name);
  if (encoded.length > NAME_BYTES) {
    throw new Error(`“${name}” has ${encoded.length} bytes, a tar archive takes names of ${NAME_BYTES}; download the files one by one`);
  }
  const block = new Uint8Array(BLOCK);
  const text = (offset, value) => block.set(encoder.encode(value), offset);
  block.set(encoded, 0);
  text(100, '0000644\0'); // mode
  text(108, '0000000\0'); // owner
  text(116, '0000000\0'); // group
  block.set(sizeField(size), 124);
  text(136, octal(Math.max(0, Math.floor(modified)), 11) + '\0');
  text(148, ' '.repeat(8)); // the sum is taken with spaces in the checksum's own field
  text(156, '0'); // a regular file
  text(257, 'ustar\0' + '00');
  const sum = block.reduce((total, byte) => total + byte, 0);
  text(148, octal(sum, 6) + '\0 ');
  return block;
}

/** Encodes a size: in octal below 8 GiB, else in big-endian base 256 with the top bit set. GNU tar, bsdtar and Python read both. */
function sizeField(size) {
  if (size < LARGEST_OCTAL) return new TextEncoder().encode(octal(size, 11) + '\0');
  const field = new Uint8Array(12);
  let rest = size;
  for (let i = 11; i > 3; i -= 1) {
    field[i] = rest % 256;
    rest = Math.floor(rest / 256);
  }
  field[0] = 0x80;
  return field;
}

function octal(number, digits) {
  return number.toString(8).padStart(digits, '0');
}
