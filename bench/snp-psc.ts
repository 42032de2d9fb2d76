/**
 * snp.psc: an SNP guest on a real core changes the state of pages by lists in its GHCB (Page State Change): 253 single pages that are no neighbours, so each is an exit of its own
 * that the VMM answers by attributes and by discarding the side that is no longer used; and lists of one entry of 2 MiB where nothing is populated. Wanted: 100 k pages a second,
 * and one entry of 2 MiB for at most 1/50 of 512 single ones; the ratio is the lesser of the two.
 */
import { platformEntropy } from '../src/base/entropy.ts';
import { Chip } from '../src/hardware/chip.ts';
import { createKernel, type Vm } from '../src/kernel/kvm/index.ts';
import { enterLongMode } from './measure/long-mode.ts';
import { privateVm } from './measure/private-vm.ts';

const WANTED = 100_000;
const WANTED_LARGE = 50;
const LISTS = 40;
const ROUNDS = 8;
const RAM = 0x100_0000;
const C_BIT = 1n << 51n;
const TABLES = 0x1000;
const CODE = 0x8000;
const TEMPLATES = [0x9000, 0xa000] as const;
const GHCB = 0x4_0000;
const TO_PRIVATE = 1n;
const TO_SHARED = 2n;
const LARGE = 1n << 56n;
const FIRST_GFN = 0x400;
const KEEP_SIZE_PUNCH = 3;
const MADV_DONTNEED = 4;
const ENCRYPTED = 16n;
const HYPERCALL = 3;

const word = (value: number): number[] => [
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  value >>> 24,
];
/** Registers the GHCB, then for ever: copies a list, takes the other one next, asks. */
const PROGRAM = [
  ...[0xb9, ...word(0xc001_0130), 0xb8, ...word(GHCB | 0x12), 0x31, 0xd2, 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9],
  ...[0xb8, ...word(GHCB), 0x0f, 0x30],
  // again: mov rsi, r8; mov rdi, r10; mov ecx, 254; rep movsq
  ...[0x4c, 0x89, 0xc6, 0x4c, 0x89, 0xd7, 0xb9, ...word(254), 0xf3, 0x48, 0xa5],
  // mov [rbx + 0x3f8], r11; xchg r8, r9; vmgexit; jmp again
  ...[0x4c, 0x89, 0x9b, ...word(0x3f8), 0x4d, 0x87, 0xc8, 0xf3, 0x0f, 0x01, 0xd9, 0xeb, 0xe2],
];

export async function bench() {
  const single = Array.from({ length: 253 }, (_, i) => BigInt(FIRST_GFN + 2 * i) << 12n);
  const perPage = measure(single);
  const perLarge = measure([(BigInt(FIRST_GFN) << 12n) | LARGE]);
  const rate = 1000 / perPage;
  const saving = (512 * perPage) / perLarge;
  return {
    value: rate,
    unit: 'pages/s',
    bound: WANTED,
    ratio: Math.min(rate / WANTED, saving / WANTED_LARGE),
    note: `single pages by list, wanted ≥ ${WANTED}; 2 MiB at once cost 1/${Math.round(saving)} of 512 single ones, wanted ≤ 1/${WANTED_LARGE}`,
  };
}

/** Milliseconds an entry, when a guest makes these private and shared in turn. */
function measure(entries: readonly bigint[]): number {
  const entropy = platformEntropy();
  const chip = new Chip({ generation: 'milan', entropy });
  const kernel = createKernel({ memory: 32 * 1024 * 1024, chip, entropy });
  const { process, vm, hva, fd } = privateVm(kernel, 4, RAM);
  const sevFd = process.openSev();
  vm.memoryEncryptOp({ id: 22, sevFd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 2 } });
  const vcpu = vm.createVcpu(0);
  setRegisters(vcpu);
  vm.memoryEncryptOp({ id: 100, sevFd, data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 } });
  const image = guestImage(entries);
  process.memory.write(hva, image);
  vm.setMemoryAttributes({ address: 0n, size: BigInt(image.length), attributes: 8n, flags: 0n });
  const data = { gfnStart: 0n, uaddr: BigInt(hva), len: BigInt(image.length), type: 1, flags: 0 };
  vm.memoryEncryptOp({ id: 101, sevFd, data });
  const end = { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 };
  vm.memoryEncryptOp({ id: 102, sevFd, data: end });
  const request = new Uint8Array(0x20);
  new DataView(request.buffer).setBigUint64(0, 0x8000_0010n, true);
  new DataView(request.buffer).setBigUint64(0x18, BigInt(GHCB + 0x800), true);
  process.memory.write((hva + GHCB + 0x390) as never, request);

  const { kvmRun } = vcpu;
  const convert = (): void => {
    if (vcpu.run() !== 0 || kvmRun.exitReason !== HYPERCALL)
      throw new Error(`exit ${kvmRun.exitReason}, want ${HYPERCALL}`);
    const address = kvmRun.hypercallArg(0);
    const size = kvmRun.hypercallArg(1) * 4096n;
    const toPrivate = (kvmRun.hypercallArg(2) & ENCRYPTED) !== 0n;
    vm.setMemoryAttributes({ address, size, attributes: toPrivate ? 8n : 0n, flags: 0n });
    if (toPrivate) process.memory.madvise((hva + Number(address)) as never, Number(size), MADV_DONTNEED);
    else process.fallocate(fd, KEEP_SIZE_PUNCH, address, size);
    kvmRun.hypercallRet = 0n;
  };
  const conversions = entries.length === 1 ? 4000 : LISTS * entries.length;
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    for (let i = 0; i < conversions; i++) convert();
    best = Math.min(best, performance.now() - start);
  }
  kernel.close();
  return best / conversions;
}

function setRegisters(vcpu: ReturnType<Vm['createVcpu']>): void {
  enterLongMode(vcpu, TABLES, {
    rip: BigInt(CODE),
    rbx: BigInt(GHCB),
    r8: BigInt(TEMPLATES[0]),
    r9: BigInt(TEMPLATES[1]),
    r10: BigInt(GHCB + 0x800),
    // SW_EXITCODE, both EXITINFO and SW_SCRATCH are valid.
    r11: 0x3c_0000_0000_0000n,
  });
}

/** Page tables with the C-bit everywhere but for the GHCB, the program, and the list twice: to private, to shared. */
function guestImage(entries: readonly bigint[]): Uint8Array {
  const image = new Uint8Array(0xb000);
  const view = new DataView(image.buffer);
  for (let level = 0; level < 3; level++) {
    const at = TABLES + level * 0x1000;
    view.setBigUint64(at, BigInt(at + 0x1000) | 7n | C_BIT, true);
  }
  for (let page = 0; page < 512; page++) {
    const isShared = page === GHCB / 4096;
    view.setBigUint64(TABLES + 0x3000 + page * 8, BigInt(page * 4096) | 3n | (isShared ? 0n : C_BIT), true);
  }
  image.set(PROGRAM, CODE);
  for (const [i, operation] of [TO_PRIVATE, TO_SHARED].entries()) {
    const at = TEMPLATES[i]!;
    view.setUint16(at + 2, entries.length - 1, true);
    for (const [k, value] of entries.entries())
      view.setBigUint64(at + 8 + 8 * k, value | (operation << 52n), true);
  }
  return image;
}
