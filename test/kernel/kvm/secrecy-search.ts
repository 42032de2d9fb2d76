/**
 * Where a host can read, and whether a guest's secrets are to be found there. Each kind of place is read by its own path, and told apart from the others, so that a leak in one
 * of them is not found by way of another. Leaks can be planted.
 *
 * A page is looked at where it is not as the search before found it: what is kept since then is younger than such a page.
 *
 * No device of ours does DMA yet. What one would do is tried instead: copies between frames by the memory controller, without a key.
 */
import { inspect } from 'node:util';
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import { LinuxError } from '../../../src/base/errors.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { bytesInText } from './bytes-in-text.ts';
import { frameOfGuestPage } from './guest-messages.ts';
import { keysOfChip, loadVlek, type RecordedKeys } from './recorded-keys.ts';
import { SECRETS, SHARED, type SnpVm } from './snp-bench.ts';

export const PLACES = [
  'process memory',
  'kvm_run',
  'frames',
  'DMA',
  'guest_memfd',
  'firmware buffers',
  'answers to ioctls',
  'traces',
  'reports',
  'logs',
] as const;
export type Place = (typeof PLACES)[number];

export interface Secret {
  readonly name: string;
  readonly bytes: Buffer;
  /** The guest itself puts it into reports. */
  readonly reported: boolean;
}

const WINDOW_PAGES = 512;
const GMEM_BYTES = 0x20_0000;
const ZEROS = Buffer.alloc(4096);
/** So many bytes of a secret, from a multiple of it on, give it away. */
const PIECE = 8;
/** More secrets than these are forgotten, the eldest first, but for those that are kept for good. */
const REMEMBERED = 80;

export class SecretSearch {
  readonly snp: SnpVm;
  readonly #keys: RecordedKeys;
  /** Bytes that firmware or KVM gave to user space since the last search. */
  readonly answers: Uint8Array[] = [];
  /** Reports that guests published. */
  readonly reports: Uint8Array[] = [];
  /** Their text, as tools print it. */
  readonly printed: string[] = [];
  readonly #traced: string[] = [];
  readonly #logged: string[] = [];
  readonly #lasting: Secret[] = [];
  readonly #recent: Secret[] = [];
  readonly #window = new Pages(WINDOW_PAGES);
  readonly #mapping = new Pages(WINDOW_PAGES);
  readonly #frames: Pages;
  readonly #firmware: Pages;
  readonly #copies: Pages;
  /** Where what a device copies goes. */
  readonly #bounce: Pfn;
  readonly #leaked: Pfn[] = [];

  /** `keys` is the entropy of the machine, whose guest is launched. A VLEK is loaded. */
  constructor(snp: SnpVm, keys: RecordedKeys) {
    this.snp = snp;
    this.#keys = keys;
    this.#keepDrawn('for good');
    for (const { name, bytes } of [...keysOfChip(snp.chip), ...loadVlek(snp)])
      this.keep(name, bytes, 'for good');
    const { memory, trace } = snp.kernel;
    this.#frames = new Pages(memory.frameCount);
    this.#firmware = new Pages(memory.frameCount);
    this.#copies = new Pages(memory.frameCount);
    this.#bounce = memory.allocate(0, memory.owner('device')) as Pfn;
    trace.listen((event) => this.#traced.push(JSON.stringify(event)));
  }

  /** From now on nobody but the guest may know these bytes, whole pieces, which nobody has had before the last search. */
  keep(name: string, bytes: Uint8Array, how: 'for good' | 'a while' | 'reported' = 'a while'): void {
    if (bytes.length === 0 || bytes.length % PIECE !== 0)
      throw new RangeError(`${name}: got ${bytes.length} bytes, want whole pieces of ${PIECE}`);
    const reported = how === 'reported' || name === 'report ID';
    const secret = { name, bytes: Buffer.from(bytes), reported };
    if (how === 'for good') this.#lasting.push(secret);
    else this.#recent.push(secret);
    if (this.#recent.length > REMEMBERED) this.#recent.splice(0, this.#recent.length - REMEMBERED);
  }

  /** What nobody but the guest, or firmware, may know, the eldest first. */
  get secrets(): readonly Secret[] {
    return [...this.#lasting, ...this.#recent];
  }

  /** Does it, and notes what it says where Linux would refuse. False: it did. */
  attempt(action: () => unknown): boolean {
    try {
      action();
      return true;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.#logged.push(inspect(error));
      return false;
    }
  }

  /** What a vCPU's ioctls say, where they answer. */
  readVcpu(): void {
    const { vcpu } = this.snp;
    const ioctls: readonly (() => unknown)[] = [
      () => vcpu.getRegs(),
      () => vcpu.getSregs(),
      () => vcpu.getFpu(),
      () => vcpu.getXsave(),
      () => vcpu.getXcrs(),
      () => vcpu.getDebugRegs(),
      () => vcpu.getVcpuEvents(),
      () => vcpu.getMsrs([0x174, 0x175, 0xc000_0080, 0xc000_0081, 0xc000_0100]),
    ];
    for (const ioctl of ioctls) this.attempt(() => this.answers.push(bytesIn(ioctl())));
  }

  /** Which secrets can be read where; none: the host knows nothing. */
  leaks(): { readonly secret: string; readonly place: Place }[] {
    this.#keepDrawn('a while');
    const { secrets } = this;
    const leaks: { secret: string; place: Place }[] = [];
    const find = finderOf(secrets);
    const look = (place: Place, ...seen: readonly Buffer[]): void => {
      const found = new Set(seen.flatMap(find));
      for (const secret of secrets)
        if (found.has(secret) && !(place === 'reports' && secret.reported))
          leaks.push({ secret: secret.name, place });
    };
    const inText = (lines: string[]): readonly Buffer[] => bytesInText(lines.splice(0).join('\n'), PIECE);
    look('process memory', this.#readWindow());
    look('kvm_run', Buffer.from(this.snp.vcpu.kvmRun.bytes));
    look('frames', this.#readFrames('other', this.#frames));
    look('firmware buffers', this.#readFrames('firmware', this.#firmware));
    look('DMA', this.#copied());
    look('guest_memfd', ...this.#file());
    look('answers to ioctls', Buffer.concat(this.answers.splice(0)));
    look('traces', ...inText(this.#traced));
    look('reports', Buffer.concat(this.reports.splice(0)), ...inText(this.printed));
    look('logs', ...inText(this.#logged));
    return leaks;
  }

  /** Puts bytes, a secret, where they must not be. */
  plant(place: Place, secret: Uint8Array): void {
    const { snp } = this;
    const { memory, trace } = snp.kernel;
    const bytes = Buffer.from(secret);
    const write = (frame: number, offset: number): void =>
      memory.encryption.writeUnder(0, (frame * 4096 + offset) as Spa, bytes);
    switch (place) {
      case 'process memory':
        snp.process.memory.write((snp.hva + SHARED + 0x2123) as Hva, bytes);
        return;
      case 'kvm_run':
        snp.vcpu.kvmRun.bytes.set(bytes, 0x1234);
        return;
      case 'frames':
        this.#leaked.push(memory.allocate(0, memory.owner('leak')) as Pfn);
        write(this.#leaked.at(-1)!, 77);
        return;
      case 'DMA': {
        // A controller that gives a device what stands in the frame.
        const private_ = frameOfGuestPage(snp, SECRETS) * 4096;
        Object.assign(memory, {
          copy: (to: Spa, from: Spa, length: number): void => {
            HostMemory.prototype.copy.call(memory, to, from, length);
            if (from === private_) write(to / 4096, 9);
          },
        });
        return;
      }
      case 'guest_memfd': {
        // A file that can be read, past the memory controller.
        const { operations } = snp.process.files.get(snp.gmem);
        Object.assign(operations, {
          read: (into: Uint8Array, offset: number): number => {
            if (offset === SECRETS) into.set(bytes, 123);
            return into.length;
          },
        });
        return;
      }
      case 'firmware buffers':
        write(snp.vm.sev!.responsePage, 0x100);
        return;
      case 'answers to ioctls': {
        const { vcpu } = snp;
        Object.assign(vcpu, { getVcpuEvents: () => ({ pending: BigInt(`0x${hex(reversed(bytes))}`) }) });
        this.readVcpu();
        return;
      }
      case 'traces':
        trace.emit({ kind: 'call', who: 'firmware', what: 'SNP_GUEST_REQUEST', key: hex(bytes) });
        return;
      case 'reports':
        this.reports.push(Buffer.concat([ZEROS.subarray(0, 0x50), bytes]));
        return;
      case 'logs':
        this.attempt(() => {
          throw new LinuxError('EIO', `key ${bytes.toString('base64')}`);
        });
    }
  }

  /** What firmware drew since the last time. */
  #keepDrawn(how: 'for good' | 'a while'): void {
    for (const { name, bytes } of this.#keys.take()) this.keep(name, bytes, how);
  }

  close(): void {
    for (const frame of [this.#bounce, ...this.#leaked]) this.snp.kernel.memory.free(frame, 0);
  }

  #readWindow(): Buffer {
    const { process, hva } = this.snp;
    return this.#window.changed((page, into) => process.memory.read((hva + page * 4096) as Hva, into));
  }

  /** Frames as the host's software reads them: firmware's or the others. */
  #readFrames(wanted: 'firmware' | 'other', pages: Pages): Buffer {
    const { memory } = this.snp.kernel;
    return pages.changed((frame, into) => {
      const isFirmware = memory.ownerOf(frame as Pfn)?.name === 'psp';
      if (frame === this.#bounce || isFirmware !== (wanted === 'firmware')) into.fill(0);
      else memory.read((frame * 4096) as Spa, into);
    });
  }

  /** What a device gets of frames that are anybody's but the hypervisor's. */
  #copied(): Buffer {
    const { memory } = this.snp.kernel;
    const at = (this.#bounce * 4096) as Spa;
    return this.#copies.changed((frame, into) => {
      if (memory.rmp!.state(frame as Pfn) === 'hypervisor') {
        into.fill(0);
        return;
      }
      memory.copy(at, (frame * 4096) as Spa, 4096);
      memory.read(at, into);
    });
  }

  /** The file as its descriptor gives it: by read, and by a mapping. */
  #file(): readonly Buffer[] {
    const { process, gmem } = this.snp;
    const pages: Buffer[] = [];
    const page = Buffer.alloc(4096);
    const isReadable = this.attempt(() => process.pread(gmem, page, 0n));
    for (let at = 0; isReadable && at < GMEM_BYTES; at += 4096) {
      page.fill(0);
      process.pread(gmem, page, BigInt(at));
      if (!page.equals(ZEROS)) pages.push(Buffer.from(page));
    }
    this.attempt(() => {
      const hva = process.memory.mmap({ length: GMEM_BYTES, protection: 1, flags: 1, fd: gmem, offset: 0n });
      pages.push(
        this.#mapping.changed((index, into) => process.memory.read((hva + index * 4096) as Hva, into)),
      );
      process.memory.munmap(hva, GMEM_BYTES);
    });
    return pages;
  }
}

/** Pages by their numbers, and what was in them when they were read last. At first that is nothing but zeros. */
class Pages {
  readonly #last: Buffer;
  readonly #now = Buffer.alloc(4096);
  #changed: Buffer;

  constructor(count: number) {
    this.#last = Buffer.alloc(count * 4096);
    this.#changed = Buffer.alloc(4096);
  }

  /** Those that are others now, one behind the other: until the next call. */
  changed(read: (page: number, into: Uint8Array) => void): Buffer {
    const now = this.#now;
    let filled = 0;
    for (let at = 0; at < this.#last.length; at += 4096) {
      read(at / 4096, now);
      if (now.compare(this.#last, at, at + 4096) === 0) continue;
      now.copy(this.#last, at);
      if (filled === this.#changed.length)
        this.#changed = Buffer.concat([this.#changed, Buffer.alloc(filled)]);
      now.copy(this.#changed, filled);
      filled += 4096;
    }
    return this.#changed.subarray(0, filled);
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const reversed = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes).reverse();

/** Tells in one pass which secrets have a piece among bytes: by the piece's first two, then by all. */
function finderOf(secrets: readonly Secret[]): (seen: Buffer) => readonly Secret[] {
  const byStart = new Map<number, { secret: Secret; piece: Buffer }[]>();
  const isStart = new Uint8Array(0x1_0000);
  for (const secret of secrets)
    for (let from = 0; from < secret.bytes.length; from += PIECE) {
      const piece = secret.bytes.subarray(from, from + PIECE);
      const start = piece.readUInt16LE(0);
      isStart[start] = 1;
      const others = byStart.get(start);
      if (others === undefined) byStart.set(start, [{ secret, piece }]);
      else others.push({ secret, piece });
    }
  return (seen) => {
    const found: Secret[] = [];
    for (let at = 0; at + PIECE <= seen.length; at++) {
      const start = seen[at]! | (seen[at + 1]! << 8);
      if (isStart[start] === 0) continue;
      for (const { secret, piece } of byStart.get(start)!)
        if (piece.compare(seen, at, at + PIECE) === 0) found.push(secret);
    }
    return found;
  };
}

/** All numbers and bytes of an ioctl's answer, as they stand in memory. */
function bytesIn(value: unknown): Uint8Array {
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  if (typeof value === 'number') return new Uint8Array(Int32Array.of(value).buffer);
  if (typeof value === 'bigint') {
    const digits = value >> 64n === 0n ? 16 : 32;
    return reversed(Buffer.from(value.toString(16).padStart(digits, '0'), 'hex'));
  }
  if (typeof value !== 'object' || value === null) return new Uint8Array(0);
  return Buffer.concat(Object.values(value).map(bytesIn));
}
