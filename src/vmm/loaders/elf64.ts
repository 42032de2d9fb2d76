/**
 * Static ELF executables for x86-64 (System V ABI, ELF-64 object file format; QEMU include/hw/elf_ops.h.inc). Segments go to
 * their virtual address, because the guest starts with memory mapped one to one. Leaves out: relocation, so position-independent
 * and dynamically linked programs are refused.
 */
import { hex, type VmmError } from '../error.ts';
import { type ImageSegment, imageError, type LoadedImage } from './image.ts';

const EHDR_BYTES = 64;
const PHDR_BYTES = 56;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const ET_EXEC = 2;
const ET_DYN = 3;
const EM_X86_64 = 62;
const PT_LOAD = 1;
const PT_INTERP = 3;
/** e_phnum is elsewhere. */
const PN_XNUM = 0xffff;

/** True if the file says that it is an ELF file. */
export const isElf = (bytes: Uint8Array): boolean =>
  bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;

/**
 * Reads `bytes`, which the messages call `name`. All segments must lie within [0, memory). Throws VmmError that names the
 * field, what it holds and what it should.
 */
export function loadElf64(bytes: Uint8Array, name: string, memory: number): LoadedImage {
  const bad = (field: string, got: string, want: string): VmmError => imageError(name, field, got, want);
  if (!isElf(bytes)) {
    const magic = [...bytes.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    throw bad('e_ident magic', magic === '' ? 'an empty file' : magic, '7f 45 4c 46');
  }
  if (bytes.length < EHDR_BYTES) {
    throw bad('ELF header', `${bytes.length} bytes`, `${EHDR_BYTES} bytes (truncated file)`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const u16 = (at: number): number => view.getUint16(at, true);
  const u32 = (at: number): number => view.getUint32(at, true);
  const u64 = (at: number): bigint => view.getBigUint64(at, true);
  const expect = (field: string, got: number, want: number, meaning: string): void => {
    if (got !== want) throw bad(field, String(got), `${want} (${meaning})`);
  };

  expect('e_ident[EI_CLASS]', bytes[4]!, ELFCLASS64, 'ELFCLASS64, a 64-bit program');
  expect('e_ident[EI_DATA]', bytes[5]!, ELFDATA2LSB, 'ELFDATA2LSB, little-endian');
  expect('e_ident[EI_VERSION]', bytes[6]!, 1, 'EV_CURRENT');
  expect('e_machine', u16(18), EM_X86_64, 'EM_X86_64');
  if (u16(16) === ET_DYN) {
    throw bad(
      'e_type',
      `${ET_DYN} (ET_DYN, position-independent)`,
      `${ET_EXEC} (ET_EXEC): link with -static -no-pie`,
    );
  }
  expect('e_type', u16(16), ET_EXEC, 'ET_EXEC, a static executable');
  expect('e_version', u32(20), 1, 'EV_CURRENT');
  expect('e_ehsize', u16(52), EHDR_BYTES, 'bytes of an ELF-64 header');
  expect('e_phentsize', u16(54), PHDR_BYTES, 'bytes of an ELF-64 program header');
  const count = u16(56);
  if (count === 0) throw bad('e_phnum', '0', 'at least one program header');
  if (count === PN_XNUM) throw bad('e_phnum', hex(PN_XNUM), 'fewer program headers');
  const table = u64(32);
  if (table + BigInt(count * PHDR_BYTES) > BigInt(bytes.length)) {
    throw bad('e_phoff', hex(table), `${count} program headers within the file's ${bytes.length} bytes`);
  }

  const segments: ImageSegment[] = [];
  for (let index = 0; index < count; index++) {
    const at = Number(table) + index * PHDR_BYTES;
    const type = u32(at);
    const field = (which: string): string => `program header ${index}: ${which}`;
    if (type === PT_INTERP) {
      throw bad(
        field('p_type'),
        `${PT_INTERP} (PT_INTERP, dynamically linked)`,
        'a static executable: link with -static',
      );
    }
    if (type !== PT_LOAD) continue;
    const offset = u64(at + 8);
    const address = u64(at + 16);
    const fileBytes = u64(at + 32);
    const memoryBytes = u64(at + 40);
    if (offset + fileBytes > BigInt(bytes.length)) {
      throw bad(
        field('p_offset + p_filesz'),
        `${hex(offset)} + ${hex(fileBytes)}`,
        `at most the file's ${hex(bytes.length)} (truncated file)`,
      );
    }
    if (memoryBytes < fileBytes) {
      throw bad(field('p_memsz'), hex(memoryBytes), `at least p_filesz ${hex(fileBytes)}`);
    }
    if (memoryBytes === 0n) continue;
    if (address + memoryBytes > BigInt(memory)) {
      throw bad(
        field('p_vaddr + p_memsz'),
        `${hex(address)} + ${hex(memoryBytes)}`,
        `at most the memory's ${hex(memory)} (give the guest more memory or link it lower)`,
      );
    }
    segments.push({
      bytes: bytes.subarray(Number(offset), Number(offset + fileBytes)),
      address: Number(address),
      memoryBytes: Number(memoryBytes),
    });
  }
  if (segments.length === 0) throw bad('program headers', 'no PT_LOAD with bytes', 'at least one');
  segments.sort((a, b) => a.address - b.address);
  for (let index = 1; index < segments.length; index++) {
    const [before, after] = [segments[index - 1]!, segments[index]!];
    const end = before.address + before.memoryBytes;
    if (end > after.address) {
      throw bad(
        'p_vaddr of two PT_LOAD',
        `${hex(after.address)} before ${hex(end)}`,
        'segments that do not overlap',
      );
    }
  }
  const entry = u64(24);
  const holds = segments.some(
    ({ address, memoryBytes }) => entry >= BigInt(address) && entry < BigInt(address + memoryBytes),
  );
  if (!holds) throw bad('e_entry', hex(entry), 'an address within a PT_LOAD segment');
  return { segments, entry: Number(entry) };
}
