/**
 * Where a host can read, and whether a guest's secrets are to be found there. Each kind of place is read by its own path, and told apart from the others, so that a leak in one
 * of them is not found by way of another. Leaks can be planted.
 *
 * No device of ours does DMA yet. What one would do is tried instead: copies between frames by the memory controller, without a key.
 */
import { inspect } from 'node:util';
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import { LinuxError } from '../../../src/base/errors.ts';
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

interface Secret {
  readonly name: string;
  /** All of it, 16 bytes each: any of them gives it away. */
  readonly pieces: readonly Buffer[];
  /** As text may show the pieces. */
  readonly forms: readonly string[];
  /** The guest itself puts it into reports. */
  readonly reported: boolean;
}

const WINDOW_PAGES = 512;
const GMEM_BYTES = 0x20_0000;
const ZEROS = Buffer.alloc(4096);
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
  #recent: Secret[] = [];
  /** Where what a device copies goes. */
  readonly #bounce: Pfn;

  /** `keys` is the entropy of the machine, whose guest is launched. A VLEK is loaded. */
  constructor(snp: SnpVm, keys: RecordedKeys) {
    this.snp = snp;
    this.#keys = keys;
    this.#keepDrawn('for good');
    for (const { name, bytes } of [...keysOfChip(snp.chip), ...loadVlek(snp)])
      this.keep(name, bytes, 'for good');
    const { memory, trace } = snp.kernel;
    this.#bounce = memory.allocate(0, memory.owner('device')) as Pfn;
    trace.listen((event) => this.#traced.push(JSON.stringify(event)));
  }

  /** From now on nobody but the guest may know these bytes. */
  keep(name: string, bytes: Uint8Array, how: 'for good' | 'a while' | 'reported' = 'a while'): void {
    const secret = secretOf(name, bytes, how === 'reported' || name === 'report ID');
    if (how === 'for good') this.#lasting.push(secret);
    else this.#recent.push(secret);
    if (this.#recent.length > REMEMBERED) this.#recent.splice(0, this.#recent.length - REMEMBERED);
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
    const secrets = [...this.#lasting, ...this.#recent];
    const leaks: { secret: string; place: Place }[] = [];
    const find = finderOf(secrets);
    const look = (place: Place, seen: Buffer, text: string): void => {
      const found = find(seen);
      for (const secret of secrets) {
        const { name, forms, reported } = secret;
        if (place === 'reports' && reported) continue;
        if (found.has(secret) || forms.some((form) => text.includes(form)))
          leaks.push({ secret: name, place });
      }
    };
    look('process memory', this.#window(), '');
    look('kvm_run', Buffer.from(this.snp.vcpu.kvmRun.bytes), '');
    const { frames, firmware } = this.#frames();
    look('frames', frames, '');
    look('firmware buffers', firmware, '');
    look('DMA', this.#copied(), '');
    look('guest_memfd', this.#file(), '');
    look('answers to ioctls', Buffer.concat(this.answers.splice(0)), '');
    look('traces', ZEROS, this.#traced.splice(0).join('\n'));
    look('reports', Buffer.concat(this.reports.splice(0)), this.printed.splice(0).join('\n'));
    look('logs', ZEROS, this.#logged.splice(0).join('\n'));
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
        write(memory.allocate(0, memory.owner('leak')), 77);
        return;
      case 'DMA': {
        // A controller that gives a device what stands in the frame.
        const { copy } = memory;
        Object.assign(memory, {
          copy: (to: Spa, from: Spa, length: number): void => {
            copy.call(memory, to, from, length);
            if (Math.floor(from / 4096) === frameOfGuestPage(snp, SECRETS)) write(Math.floor(to / 4096), 9);
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
    this.snp.kernel.memory.free(this.#bounce, 0);
  }

  #window(): Buffer {
    const { process, hva } = this.snp;
    return withContent(WINDOW_PAGES, (page, into) => process.memory.read((hva + page * 4096) as Hva, into));
  }

  /** All frames as the host's software reads them: firmware's and the others. */
  #frames(): { frames: Buffer; firmware: Buffer } {
    const { memory } = this.snp.kernel;
    const isFirmware = (frame: number): boolean => memory.ownerOf(frame as Pfn)?.name === 'psp';
    const read = (wanted: 'firmware' | 'other') =>
      withContent(memory.frameCount, (frame, into) => {
        if (frame === this.#bounce || isFirmware(frame) !== (wanted === 'firmware')) return;
        memory.read((frame * 4096) as Spa, into);
      });
    return { frames: read('other'), firmware: read('firmware') };
  }

  /** What a device gets of frames that are anybody's but the hypervisor's. */
  #copied(): Buffer {
    const { memory } = this.snp.kernel;
    const at = (this.#bounce * 4096) as Spa;
    return withContent(memory.frameCount, (frame, into) => {
      if (memory.rmp!.state(frame as Pfn) === 'hypervisor') return;
      memory.copy(at, (frame * 4096) as Spa, 4096);
      memory.read(at, into);
    });
  }

  /** The file as its descriptor gives it: by read, and by a mapping. */
  #file(): Buffer {
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
        withContent(WINDOW_PAGES, (index, into) => process.memory.read((hva + index * 4096) as Hva, into)),
      );
      process.memory.munmap(hva, GMEM_BYTES);
    });
    return Buffer.concat(pages);
  }
}

/** The pages that are not all zero, one behind the other. */
function withContent(count: number, read: (page: number, into: Uint8Array) => void): Buffer {
  const bytes = Buffer.alloc(count * 4096);
  let filled = 0;
  for (let page = 0; page < count; page++) {
    const into = bytes.subarray(filled, filled + 4096);
    read(page, into);
    if (!into.equals(ZEROS)) filled += 4096;
  }
  return bytes.subarray(0, filled);
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const reversed = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes).reverse();

/** Text may show bytes as hex, as little-endian numbers, in base64 or as a list. */
function secretOf(name: string, secret: Uint8Array, reported: boolean): Secret {
  const all = Buffer.from(secret);
  const pieces: Buffer[] = [];
  const forms: string[] = [];
  for (let at = 0; at < all.length; at += 16) {
    const start = Math.max(0, Math.min(at, all.length - 16));
    const piece = all.subarray(start, start + 16);
    pieces.push(piece);
    const low = piece.subarray(0, 8);
    forms.push(
      hex(piece),
      hex(reversed(piece)),
      hex(reversed(low)),
      BigInt(`0x${hex(reversed(low))}`).toString(),
      base64(piece, 0),
      base64(all, start),
      [...piece].join(','),
    );
  }
  return { name, pieces, forms, reported };
}

/** Tells in one pass which secrets have a piece among bytes: by the piece's first two, then by all. */
function finderOf(secrets: readonly Secret[]): (seen: Buffer) => ReadonlySet<Secret> {
  const byStart = new Map<number, { secret: Secret; piece: Buffer }[]>();
  const isStart = new Uint8Array(0x1_0000);
  for (const secret of secrets)
    for (const piece of secret.pieces) {
      const start = piece.readUInt16LE(0);
      isStart[start] = 1;
      const others = byStart.get(start);
      if (others === undefined) byStart.set(start, [{ secret, piece }]);
      else others.push({ secret, piece });
    }
  return (seen) => {
    const found = new Set<Secret>();
    for (let at = 0; at + 16 <= seen.length; at++) {
      const start = seen[at]! | (seen[at + 1]! << 8);
      if (isStart[start] === 0) continue;
      for (const { secret, piece } of byStart.get(start)!)
        if (piece.compare(seen, at, at + 16) === 0) found.add(secret);
    }
    return found;
  };
}

/** What of the base64 of `bytes` hangs on nothing but the 16 at `at`. */
const base64 = (bytes: Buffer, at: number): string =>
  bytes.subarray(3 * Math.ceil(at / 3), 3 * Math.floor((at + 16) / 3)).toString('base64');

/** All numbers and bytes of an ioctl's answer, as they stand in memory. */
function bytesIn(value: unknown): Uint8Array {
  if (value instanceof Uint8Array) return value;
  if (typeof value === 'bigint') return reversed(Buffer.from(value.toString(16).padStart(32, '0'), 'hex'));
  if (typeof value !== 'object' || value === null) return new Uint8Array(0);
  return Buffer.concat(Object.values(value).map(bytesIn));
}
