/** /dev/kvm: the system ioctls (Linux virt/kvm/kvm_main.c kvm_dev_ioctl). */
import { KVM_API_VERSION, KVM_VCPU_MMAP_SIZE } from '../../abi/kvm.ts';
import { checkLong, u32, u64 } from '../../abi/layout.ts';
import type { CpuidEntry, Kvm as KvmInterface, MsrEntry } from '../interface.ts';
import type { Process } from '../process.ts';
import { checkExtension } from './capabilities.ts';
import { supportedCpuid } from './cpuid.ts';
import { Descriptor } from './descriptor.ts';
import { deviceAttribute } from './device-attributes.ts';
import { checkMsrIndices, getFeatureMsrs } from './msr-ioctls.ts';
import { FEATURE_MSRS, MSR_INDICES } from './msrs.ts';
import { Vm, type VmHost } from './vm.ts';

export class Kvm implements KvmInterface {
  readonly #host: VmHost;
  readonly #process: Process;
  readonly #descriptor: Descriptor;

  /** Errors: EMFILE. */
  constructor(host: VmHost, process: Process) {
    this.#host = host;
    this.#process = process;
    this.#descriptor = new Descriptor(process.files, '/dev/kvm', () => {});
  }

  get fd(): number {
    return this.#descriptor.fd;
  }

  getApiVersion(): number {
    return KVM_API_VERSION;
  }

  checkExtension(capability: number): number {
    this.#descriptor.check();
    checkLong(capability, 'KVM_CHECK_EXTENSION.cap');
    return checkExtension(capability, { policy: this.#host.policy, hasSnp: this.#host.sev !== undefined });
  }

  getVcpuMmapSize(): number {
    return KVM_VCPU_MMAP_SIZE;
  }

  getSupportedCpuid(): CpuidEntry[] {
    return supportedCpuid(this.#host.sev?.machine);
  }

  getMsrIndexList(): number[] {
    this.#descriptor.check();
    return [...MSR_INDICES];
  }

  getMsrFeatureIndexList(): number[] {
    this.#descriptor.check();
    return [...FEATURE_MSRS.keys()];
  }

  getMsrs(indices: readonly number[]): MsrEntry[] {
    this.#descriptor.check();
    checkMsrIndices(indices);
    return getFeatureMsrs(indices);
  }

  createVm(type: number): Vm {
    this.#descriptor.check();
    return this.#host.trace.tellAfter(() => new Vm(this.#host, this.#process, type));
  }

  /** Errors: ENXIO. */
  getDeviceAttr({ group, attr }: { group: number; attr: bigint }): bigint {
    this.#descriptor.check();
    u32.check(group, 'kvm_device_attr.group');
    u64.check(attr, 'kvm_device_attr.attr');
    return deviceAttribute(this.#host, group, attr);
  }

  close(): void {
    this.#descriptor.close();
  }
}
