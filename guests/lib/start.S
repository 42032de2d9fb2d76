# Entry of every guest here. The VMM enters in long mode at CPL 0 with identity paging, RSP at the top of RAM minus 8 and the
# vCPU's index in EDI. All vCPUs may enter here: vCPU 0 runs main, the others stop, without a stack.

        .section .text.start, "ax"
        .globl  _start
        .type   _start, @function
_start:
        cld
        xorl    %ebp, %ebp
        testl   %edi, %edi
        jnz     park
        leaq    8(%rsp), %rax
        movq    %rax, ram_top(%rip)
        subq    $8, %rsp
        call    main
        movl    %eax, %edi
        call    exit
        .globl  park
park:
        cli
        hlt
        jmp     park

        .section .note.GNU-stack, "", @progbits
