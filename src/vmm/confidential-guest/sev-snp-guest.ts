/**
 * The object `sev-snp-guest` (QEMU target/i386/sev.c: sev_snp_guest_class_init, sev_snp_kvm_init, sev_snp_launch_start, snp_launch_update, sev_snp_launch_finish;
 * reference facts 8.6): QEMU's properties with QEMU's rules, and the launch in QEMU's order: pages are queued while the machine is put together, then added, then
 * the launch is finished.
 *
 * `certificates` is ours: QEMU 10.2 has no support for certificates from user space.
 */
import { KVM_X86_GRP_SEV, KVM_X86_SEV_SNP_REQ_CERTS } from '../../abi/kvm-sev.ts';
import { SNP_PAGE_TYPE } from '../../abi/sev-firmware.ts';
import { SEV_STATUS, sevStatusName } from '../../abi/sev-status.ts';
import { type Hva, hva, PAGE_SIZE } from '../../base/address.ts';
import { ERRNO, LinuxError } from '../../base/errors.ts';
import { textOf } from '../../base/option-checks.ts';
import type { KvmVcpu, KvmVm, Process, SevCommand, SnpLaunchUpdateCommand } from '../../kernel/interface.ts';
import { hex, VmmError } from '../error.ts';
import type { KvmState } from '../kvm-state.ts';
import { expectedVmsa } from './expected-vmsa.ts';

/** Properties by QEMU's names; binary ones are base64. */
export interface SevSnpGuestProperties {
  readonly 'sev-device'?: string;
  readonly cbitpos?: number;
  readonly 'reduced-phys-bits'?: number;
  readonly 'kernel-hashes'?: boolean;
  readonly policy?: bigint;
  readonly 'guest-visible-workarounds'?: string;
  readonly 'id-block'?: string;
  readonly 'id-auth'?: string;
  readonly 'author-key-enabled'?: boolean;
  readonly 'host-data'?: string;
  readonly 'vcek-disabled'?: boolean;
}

const PROPERTY_TYPES: Record<keyof SevSnpGuestProperties, 'bigint' | 'boolean' | 'number' | 'string'> = {
  ...{ 'sev-device': 'string', cbitpos: 'number', 'reduced-phys-bits': 'number' },
  ...{ 'kernel-hashes': 'boolean', policy: 'bigint', 'guest-visible-workarounds': 'string' },
  ...{ 'id-block': 'string', 'id-auth': 'string', 'author-key-enabled': 'boolean' },
  ...{ 'host-data': 'string', 'vcek-disabled': 'boolean' },
};

const DEFAULT_POLICY = 0x30000n;
/** SEV_FEATURES of the VMSAs: what KVM adds to those asked for by INIT2, none. */
const SNP_ACTIVE = 1n;
const SIZES = { workarounds: 16, idBlock: 96, idAuth: 4096, hostData: 32 } as const;
const DIGEST_BYTES = 48;
const TRIES_WHEN_BUSY = 1000;

/** What a launch measures, in order, the VMSAs last. */
export interface LaunchContents {
  /** `type`: SNP_PAGE_TYPE */
  readonly pages: readonly { readonly gpa: number; readonly bytes: Uint8Array; readonly type: number }[];
  readonly vmsas: readonly Uint8Array[];
}

/** The ID block is another launch's. */
export class WrongMeasurement extends VmmError {
  /** What the ID block wants, 48 bytes. */
  readonly wanted: Uint8Array;
  readonly contents: LaunchContents;

  constructor(message: string, errno: number, wanted: Uint8Array, contents: LaunchContents) {
    super(message, errno, 'id-block');
    this.wanted = wanted;
    this.contents = contents;
  }
}

/** Pages of the VMM's memory that become the guest's. `type`: SNP_PAGE_TYPE. */
interface LaunchPages {
  readonly gpa: number;
  readonly hva: Hva;
  readonly bytes: number;
  readonly type: number;
}

export class SevSnpGuest {
  readonly policy: bigint;
  readonly kernelHashes: boolean;
  readonly hostData: Uint8Array;
  readonly vcekDisabled: boolean;
  readonly #gosvw: Uint8Array;
  readonly #idBlock: Uint8Array | undefined;
  readonly #idAuth: Uint8Array | undefined;
  readonly #authorKeyEnabled: boolean;
  readonly #reducedPhysBits: number;
  readonly #cbitpos: number | undefined;
  readonly #queue: LaunchPages[] = [];
  /** VMSAs as KVM will have them measured, in the order of vCPUs, once `expectVcpus` was called. */
  #vmsas: readonly Uint8Array[] = [];
  #fd = -1;
  /** `launched` once LAUNCH_FINISH was done. */
  state: 'uninit' | 'launch' | 'launched' = 'uninit';

  /** Throws VmmError, which names the property, what it got and what it wants. */
  constructor(properties: SevSnpGuestProperties = {}) {
    checkProperties(properties);
    const device = properties['sev-device'] ?? '/dev/sev';
    if (device !== '/dev/sev') throw bad('sev-device', device, '/dev/sev');
    this.policy = properties.policy ?? DEFAULT_POLICY;
    if (this.policy < 0n || this.policy >= 1n << 64n)
      throw bad('policy', String(this.policy), 'a 64-bit number');
    this.kernelHashes = properties['kernel-hashes'] ?? false;
    this.#reducedPhysBits = properties['reduced-phys-bits'] ?? 1;
    if (!Number.isInteger(this.#reducedPhysBits) || this.#reducedPhysBits < 1 || this.#reducedPhysBits > 63)
      throw bad('reduced-phys-bits', String(this.#reducedPhysBits), '1 to 63');
    this.#cbitpos = properties.cbitpos;
    this.#gosvw =
      decode('guest-visible-workarounds', properties['guest-visible-workarounds'], SIZES.workarounds) ??
      new Uint8Array(SIZES.workarounds);
    this.#idBlock = decode('id-block', properties['id-block'], SIZES.idBlock);
    const idAuth = decode('id-auth', properties['id-auth'], SIZES.idAuth, 'at most');
    this.#idAuth = idAuth === undefined ? undefined : padded(idAuth, SIZES.idAuth);
    this.#authorKeyEnabled = properties['author-key-enabled'] ?? false;
    this.hostData =
      decode('host-data', properties['host-data'], SIZES.hostData) ?? new Uint8Array(SIZES.hostData);
    this.vcekDisabled = properties['vcek-disabled'] ?? false;
    if (this.#idBlock !== undefined && this.#idAuth === undefined)
      throw new VmmError('id-auth: got none, want one with id-block');
  }

  /** sev_snp_kvm_init: before the first vCPU. Throws VmmError. `certificates`: the guest may ask user space for them. */
  kvmInit(process: Process, kvm: KvmState, options: { cBit: number; certificates: boolean }): void {
    if (this.#cbitpos !== undefined && this.#cbitpos !== options.cBit)
      throw bad('cbitpos', String(this.#cbitpos), `${options.cBit}, as the host has it`);
    try {
      this.#fd = process.openSev();
    } catch (error) {
      throw VmmError.because('sev-device: Failed to open /dev/sev', error);
    }
    const { vm } = kvm;
    this.#call(vm, 'KVM_SEV_INIT2', {
      id: 22,
      sevFd: this.#fd,
      data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 },
    });
    if (options.certificates && offersCertificateExits(kvm))
      this.#call(vm, 'KVM_SEV_SNP_ENABLE_REQ_CERTS', { id: 103, sevFd: this.#fd });
    const start: SevCommand = {
      id: 100,
      sevFd: this.#fd,
      data: { policy: this.policy, gosvw: this.#gosvw, flags: 0 },
    };
    this.#call(vm, 'SNP_LAUNCH_START', start, ({ message, errno }) =>
      errno === ERRNO.EINVAL || start.error === SEV_STATUS.POLICY_FAILURE
        ? new VmmError(message, errno, 'policy')
        : undefined,
    );
    this.state = 'launch';
  }

  /** Queues whole pages of the VMM's memory at `address` for the guest's `gpa`. `type`: SNP_PAGE_TYPE. */
  addPages(gpa: number, address: Hva, bytes: number, type: number): void {
    this.#queue.push({ gpa, hva: address, bytes, type });
  }

  /** Before the guest has run: its pages still lie in the VMM's memory as they were launched. */
  contents({ memory }: Process): LaunchContents {
    const pages = this.#queue.map(({ gpa, hva, bytes: size, type }) => {
      const bytes = new Uint8Array(size);
      memory.read(hva, bytes);
      return { gpa, bytes, type };
    });
    return { pages, vmsas: this.#vmsas };
  }

  /** Notes what the vCPUs start with; later nobody can ask them. */
  expectVcpus(vcpus: readonly KvmVcpu[]): void {
    this.#vmsas = vcpus.map((vcpu) => expectedVmsa(vcpu, SNP_ACTIVE));
  }

  /** sev_snp_launch_finish: adds what is queued, in order, and finishes. Throws VmmError. Returns how many pages were added. */
  finishLaunch(process: Process, kvm: KvmState): number {
    let pages = 0;
    for (const item of this.#queue) {
      this.#update(process, kvm, item);
      pages += item.bytes / PAGE_SIZE;
    }
    const id =
      this.#idBlock === undefined
        ? {}
        : { id: { block: this.#idBlock, auth: this.#idAuth!, authorKeyEnabled: this.#authorKeyEnabled } };
    const finish: SevCommand = {
      id: 102,
      sevFd: this.#fd,
      data: { ...id, vcekDisabled: this.vcekDisabled, hostData: this.hostData, flags: 0 },
    };
    this.#call(kvm.vm, 'SNP_LAUNCH_FINISH', finish, ({ message, errno }) => {
      if (this.#idBlock === undefined || finish.error !== SEV_STATUS.BAD_MEASUREMENT) return undefined;
      return new WrongMeasurement(
        message,
        errno!,
        this.#idBlock.slice(0, DIGEST_BYTES),
        this.contents(process),
      );
    });
    this.state = 'launched';
    return pages;
  }

  close(process: Process): void {
    if (this.#fd >= 0) process.close(this.#fd);
    this.#fd = -1;
  }

  /** Attributes first; then again until nothing is left, and again while firmware is busy. */
  #update(process: Process, kvm: KvmState, item: LaunchPages): void {
    const at = `SNP_LAUNCH_UPDATE of ${hex(item.bytes)} bytes at ${hex(item.gpa)}`;
    if (kvm.setMemoryAttributesPrivate(item.gpa, item.bytes) !== 0)
      throw new VmmError(`${at}: the range cannot be made private`);
    const expected = item.type === SNP_PAGE_TYPE.CPUID ? readPage(process, item.hva) : undefined;
    const command: SnpLaunchUpdateCommand = {
      id: 101,
      sevFd: this.#fd,
      data: {
        gfnStart: BigInt(item.gpa / PAGE_SIZE),
        uaddr: BigInt(item.hva),
        len: BigInt(item.bytes),
        type: item.type,
        flags: 0,
      },
    };
    for (let tries = 0; command.data.len > 0n; tries++) {
      try {
        kvm.vm.memoryEncryptOp(command);
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        if (error.code === 'EAGAIN' && tries < TRIES_WHEN_BUSY) continue;
        if (expected !== undefined && command.error === SEV_STATUS.INVALID_PARAM)
          throw new VmmError(`${at}: ${cpuidDifference(expected, readPage(process, item.hva))}`, error.errno);
        throw this.#failure(at, command, error);
      }
    }
  }

  /** `explain`: what the failure is, if it is more than that. */
  #call(
    vm: KvmVm,
    what: string,
    command: SevCommand,
    explain: (failure: VmmError) => VmmError | undefined = () => undefined,
  ): void {
    try {
      vm.memoryEncryptOp(command);
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      const failure = this.#failure(what, command, error);
      throw explain(failure) ?? failure;
    }
  }

  #failure(what: string, command: SevCommand, error: LinuxError): VmmError {
    const status = command.error ?? 0;
    const firmware = status === 0 ? '' : `, firmware error ${status} (${sevStatusName(status) ?? 'unknown'})`;
    return new VmmError(`sev-snp-guest: ${what}: ${error.message}${firmware}`, error.errno);
  }
}

/** Other kernels never ask user space, or always, as the early form does: neither has anything to turn on. */
function offersCertificateExits({ kvm }: KvmState): boolean {
  try {
    return kvm.getDeviceAttr({ group: KVM_X86_GRP_SEV, attr: BigInt(KVM_X86_SEV_SNP_REQ_CERTS) }) !== 0n;
  } catch (error) {
    if (error instanceof LinuxError && error.code === 'ENXIO') return false;
    throw error;
  }
}

/** object_property_set: a property that the object has not is an error, as is a value of another type. */
function checkProperties(properties: SevSnpGuestProperties): void {
  for (const [name, value] of Object.entries(properties)) {
    if (!Object.hasOwn(PROPERTY_TYPES, name))
      throw new VmmError(`Property 'sev-snp-guest.${name}' not found`);
    const want = PROPERTY_TYPES[name as keyof SevSnpGuestProperties];
    if (value !== undefined && typeof value !== want) throw bad(name, textOf(value), `a ${want}`);
  }
}

const bad = (property: string, got: string, want: string): VmmError =>
  new VmmError(`sev-snp-guest: ${property}: got ${got}, want ${want}`);

function decode(
  property: string,
  text: string | undefined,
  bytes: number,
  rule: 'exactly' | 'at most' = 'exactly',
): Uint8Array | undefined {
  if (text === undefined) return undefined;
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.length % 4 !== 0)
    throw bad(property, JSON.stringify(text), 'base64');
  const value = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const fits = rule === 'exactly' ? value.length === bytes : value.length <= bytes;
  if (!fits) throw bad(property, `${value.length} bytes`, `${rule} ${bytes}`);
  return value;
}

function padded(bytes: Uint8Array, size: number): Uint8Array {
  const page = new Uint8Array(size);
  page.set(bytes);
  return page;
}

function readPage(process: Process, address: Hva): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  process.memory.read(hva(address), page);
  return page;
}

/** What firmware changed in the CPUID page that it refused. */
function cpuidDifference(expected: Uint8Array, returned: Uint8Array): string {
  const view = (page: Uint8Array): DataView => new DataView(page.buffer);
  const words = (page: Uint8Array, at: number): number[] =>
    [24, 28, 32, 36].map((offset) => view(page).getUint32(at + offset, true));
  const count = view(expected).getUint32(0, true);
  const differing: string[] = [];
  for (let i = 0; i < count; i++) {
    const at = 16 + 48 * i;
    const [provided, wanted] = [words(expected, at), words(returned, at)];
    if (provided.every((word, k) => word === wanted[k])) continue;
    const leaf = hex(view(expected).getUint32(at, true));
    const sub = hex(view(expected).getUint32(at + 4, true));
    const list = (values: number[]): string => values.map((value) => hex(value)).join(' ');
    differing.push(`CPUID ${leaf}, index ${sub}: provided ${list(provided)}, firmware wants ${list(wanted)}`);
  }
  return `firmware refused the CPUID page: ${differing.join('; ')}`;
}
