/** The host frames behind a vCPU: VMCB, permission maps, struct kvm_run with the PIO page, and the dirty ring where the VM has rings. */
import { KVM_VCPU_MMAP_SIZE } from '../../abi/kvm.ts';
import { KvmRun } from '../../abi/kvm-run.ts';
import { type Pfn, pfn, spaOf } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import type { DirtyTracking } from './dirty-log.ts';
import { DirtyRing, ringOrder } from './dirty-ring.ts';
import { PermissionMaps } from './svm/permission-maps.ts';
import { Vmcb } from './svm/vmcb.ts';

const RUN_ORDER = 2;

export class VcpuFrames {
  readonly maps: PermissionMaps;
  readonly vmcb: Vmcb;
  readonly kvmRun: KvmRun;
  readonly ring: DirtyRing | undefined;
  readonly #memory: HostMemory;
  readonly #dirtyTracking: DirtyTracking;
  readonly #vmcbPfn: Pfn;
  readonly #runPfn: Pfn;
  readonly #ringPfn: number;

  /** Errors: ENOMEM, nothing is allocated then. */
  constructor(memory: HostMemory, dirtyTracking: DirtyTracking, id: number) {
    this.#memory = memory;
    this.#dirtyTracking = dirtyTracking;
    const owner = memory.owner('vCPU');
    this.maps = new PermissionMaps(memory, owner);
    const vmcb = memory.allocate(0, owner);
    const run = vmcb < 0 ? vmcb : memory.allocate(RUN_ORDER, owner);
    const ring = run < 0 ? run : dirtyTracking.allocateRing(memory);
    if (ring < 0) {
      this.maps.free();
      if (vmcb >= 0) memory.free(pfn(vmcb), 0);
      if (run >= 0) memory.free(pfn(run), RUN_ORDER);
      throw new LinuxError('ENOMEM', `no frames for vCPU ${id}`);
    }
    this.#vmcbPfn = pfn(vmcb);
    this.#runPfn = pfn(run);
    this.#ringPfn = ring;
    const { buffer, byteOffset } = memory.page(this.#runPfn);
    this.kvmRun = new KvmRun(new Uint8Array(buffer, byteOffset, KVM_VCPU_MMAP_SIZE));
    this.vmcb = new Vmcb(memory, spaOf(this.#vmcbPfn));
    this.ring = ring === 0 ? undefined : new DirtyRing(memory, pfn(ring), dirtyTracking.ringBytes);
    if (this.ring !== undefined) dirtyTracking.rings.add(this.ring);
  }

  free(): void {
    const memory = this.#memory;
    this.maps.free();
    memory.free(this.#vmcbPfn, 0);
    this.kvmRun.unmap();
    memory.free(this.#runPfn, RUN_ORDER);
    if (this.ring === undefined) return;
    this.#dirtyTracking.rings.delete(this.ring);
    memory.free(pfn(this.#ringPfn), ringOrder(this.#dirtyTracking.ringBytes));
  }
}
